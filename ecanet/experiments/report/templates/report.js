// A legend's button hides or shows its module in every chart that has a trace for it.
document.querySelectorAll(".legend button").forEach((button) => {
  button.addEventListener("click", () => {
    const module = button.dataset.module;
    const shown = button.getAttribute("aria-pressed") !== "true";
    document.querySelectorAll(`.legend button[data-module="${module}"]`)
      .forEach((other) => other.setAttribute("aria-pressed", String(shown)));
    document.querySelectorAll(".js-plotly-plot").forEach((chart) => {
      const traces = chart.data.flatMap((trace, i) => (String(trace.meta) === module ? [i] : []));
      if (traces.length) Plotly.restyle(chart, { visible: shown }, traces);
    });
  });
});

// A button copies the text of an element. Where a page from a file may not write the clipboard, the browser
// copies what is selected.
document.querySelectorAll("button.copy").forEach((button) => {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const source = document.getElementById(button.dataset.copies);
    let copied = true;
    try {
      await navigator.clipboard.writeText(source.innerText);
    } catch {
      getSelection().selectAllChildren(source);
      copied = document.execCommand("copy");
    }
    button.textContent = copied ? "Copied" : "Selected";
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
});

// Charts are drawn as wide as their frame, which is narrower on paper.
const drawFor = (printing) => {
  document.documentElement.classList.toggle("printing", printing);
  document.querySelectorAll(".js-plotly-plot").forEach((chart) => Plotly.relayout(chart, { autosize: true }));
};
addEventListener("beforeprint", () => drawFor(true));
addEventListener("afterprint", () => drawFor(false));
