// plotly and the charts' figures are in the page, compressed: text in base64.
const unpack = async (id) => {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (c) => c.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
};

let figures = {};
const charts = [...document.querySelectorAll(".chart")];

// Inside a closed <details> a chart has no width: it is drawn once that opens.
const draw = (chart) => {
  const figure = figures[chart.id.replace("chart-", "")];
  if (!figure || chart.closest("details:not([open])")) return;
  // The chart fills its frame, whose height is that of the figure, or less on paper. One of many rows keeps its height.
  const lower = document.documentElement.classList.contains("printing") && figure.layout.height <= 420;
  chart.style.height = `${(lower ? 0.8 : 1) * figure.layout.height}px`;
  if (chart.data) {
    Plotly.relayout(chart, { autosize: true, width: null, height: null });
    return;
  }
  const config = {
    responsive: true,
    displaylogo: false,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    toImageButtonOptions: { filename: chart.id.replace("chart-", ""), scale: 2 },
  };
  Plotly.newPlot(chart, figure.data, { ...figure.layout, height: undefined }, config);
  // To a screen reader the drawing is one image. Its buttons zoom by mouse, and are no stops of the tab key.
  const name = () => {
    chart.querySelectorAll("svg.main-svg").forEach((svg, i) => {
      if (i) svg.setAttribute("aria-hidden", "true");
      else for (const [key, value] of [["role", "img"], ["aria-label", chart.dataset.label]]) svg.setAttribute(key, value);
    });
    chart.querySelectorAll(".modebar-container").forEach((bar) => bar.setAttribute("aria-hidden", "true"));
    chart.querySelectorAll(".modebar-container *").forEach((button) => { button.tabIndex = -1; });
  };
  name();
  chart.on("plotly_afterplot", name);
};

(async () => {
  if (!charts.length) return;
  try {
    const script = document.createElement("script");
    [script.textContent, figures] = await Promise.all([unpack("plotly"), unpack("figures").then(JSON.parse)]);
    document.head.append(script);
    for (const chart of charts) {
      draw(chart);
      await new Promise((ready) => setTimeout(ready));  // the page stays responsive between two charts
    }
  } catch (error) {
    document.getElementById("no-charts").hidden = false;
    throw error;
  }
})();
document.addEventListener("toggle", ({ target }) => target.querySelectorAll(".chart").forEach(draw), true);

// A link to what is folded unfolds it.
const unfold = () => {
  let element = document.getElementById(location.hash.slice(1));
  for (; element; element = element.parentElement) if (element.tagName === "DETAILS") element.open = true;
};
unfold();
addEventListener("hashchange", unfold);
document.querySelectorAll(".contents a").forEach((link) => {
  link.addEventListener("click", () => { link.closest("details").open = false; });
});

// A legend's button hides or shows its module in every chart that has a trace for it.
document.querySelectorAll(".legend button").forEach((button) => {
  button.addEventListener("click", () => {
    const module = button.dataset.module;
    const shown = button.getAttribute("aria-pressed") !== "true";
    document.querySelectorAll(`.legend button[data-module="${module}"]`)
      .forEach((other) => other.setAttribute("aria-pressed", String(shown)));
    for (const [name, figure] of Object.entries(figures)) {
      const traces = figure.data.flatMap((trace, i) => (String(trace.meta) === module ? [i] : []));
      const chart = document.getElementById(`chart-${name}`);
      if (!traces.length) continue;
      if (chart.data) Plotly.restyle(chart, { visible: shown }, traces);
      else traces.forEach((i) => { figure.data[i].visible = shown; });
    }
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

// On paper, what is folded is unfolded where it belongs to the report, and charts are drawn as wide as their
// frame, which is narrower there, and lower, so that two rows of them share a page.
let unfolded = [];
addEventListener("beforeprint", () => {
  document.documentElement.classList.add("printing");
  unfolded = [...document.querySelectorAll("details.printed:not([open])")];
  unfolded.forEach((element) => { element.open = true; });
  charts.forEach(draw);
});
addEventListener("afterprint", () => {
  document.documentElement.classList.remove("printing");
  unfolded.forEach((element) => { element.open = false; });
  charts.forEach(draw);
});
