// Curves over the steps of a training, drawn by Observable Plot.

/** One panel as a figure. `mark(step)` moves its line; `pointed(step)` hears of the pointer. */
lab.panel = function (panel, steps, { xLabel = "step", height = 170, pointed } = {}) {
  const points = panel.lines.flatMap((line) => steps.map((step, i) => ({
    step, value: line.values[i], low: line.low?.[i], high: line.high?.[i], colour: line.colour, label: line.label,
  }))).filter((point) => point.value !== null && (!panel.logarithmic || point.value > 0));
  const dots = panel.dots?.values.flatMap((inStep, i) => inStep
    .filter((value) => value !== null)
    .map((value) => ({ step: steps[i], value, label: panel.dots.label }))) ?? [];
  const banded = points.filter((point) => point.low !== undefined && point.low !== null);

  const marks = [
    Plot.dot(dots, { x: "step", y: "value", r: 2, fill: panel.dots && `var(--${panel.dots.colour})` }),
    ...panel.lines.map((line) => Plot.areaY(banded.filter((point) => point.label === line.label), {
      x: "step", y1: "low", y2: "high", fill: `var(--${line.colour})`, fillOpacity: 0.2,
    })),
    ...panel.lines.map((line) => Plot.lineY(points.filter((point) => point.label === line.label), {
      x: "step", y: "value", stroke: `var(--${line.colour})`, strokeWidth: 2,
    })),
    Plot.tip([...points, ...dots], Plot.pointerX({
      x: "step", y: "value", title: (point) => `${point.label}\n${xLabel} ${point.step}: ${lab.number(point.value)}`,
    })),
  ];

  const drawing = Plot.plot({
    width: 420, height, marginLeft: 52, marginTop: 22, marginBottom: 32,
    x: { label: xLabel, ticks: 5 },
    y: { label: panel.unit, grid: true, ticks: 4, type: panel.logarithmic ? "log" : "linear", nice: true, tickFormat: lab.number },
    style: { fontSize: "12px", fontFamily: "inherit" },
    ariaLabel: `${panel.title}: ${panel.lines.map((line) => lab.spoken(line, steps, xLabel)).join("; ")}`,
    marks,
  });
  drawing.setAttribute("role", "img");

  const scale = drawing.scale("x");
  const rule = lab.drawn("line", { stroke: "var(--ablated)", "stroke-width": 2, y1: 18, y2: height - 30, visibility: "hidden" });
  drawing.append(rule);

  if (pointed) {
    drawing.addEventListener("click", (event) => {
      const box = drawing.getBoundingClientRect();
      pointed(scale.invert(((event.clientX - box.left) * 420) / box.width));
    });
  }

  const named = panel.dots ? [...panel.lines, panel.dots] : panel.lines;
  const legend = lab.element("ul", { class: "legend" }, named.map((line) =>
    lab.element("li", {}, lab.element("i", { "--tone": `var(--${line.colour})`, "aria-hidden": "true" }), line.label)));

  return {
    root: lab.element("figure", {}, lab.element("h5", {}, panel.title), legend, drawing),
    mark(step) {
      lab.set(rule, { x1: scale.apply(step), x2: scale.apply(step), visibility: "visible" });
    },
  };
};

/** A curve in words, for those who do not see it: where it begins and ends. */
lab.spoken = function (line, steps, xLabel) {
  const known = steps.map((step, i) => [step, line.values[i]]).filter(([, value]) => value !== null);
  if (!known.length) return `${line.label} has no values`;
  const [[first, from], [last, to]] = [known[0], known[known.length - 1]];
  return `${line.label} from ${lab.number(from)} at ${xLabel} ${first} to ${lab.number(to)} at ${xLabel} ${last}`;
};

/** A card's curves. */
lab.views.curves = function (root, view) {
  root.append(lab.element("div", { class: "curves" },
    view.panels.map((panel) => lab.panel(panel, view.steps, { height: 150 }).root)));
};
