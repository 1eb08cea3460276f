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
