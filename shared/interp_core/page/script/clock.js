// One clock for a training: a slider moves head maps and the mark in every curve together.

lab.views.clock = function (root, view) {
  const { steps, maps } = view;
  const last = steps.length - 1;
  const values = maps.map((map) => lab.shares(map.value));
  const nearest = (wanted) => steps.reduce((best, step, i) =>
    (Math.abs(step - wanted) < Math.abs(steps[best] - wanted) ? i : best), 0);

  const slider = lab.slider("Step", last, last, (i) => show(i));
  const panels = view.panels.map((panel) => lab.panel(panel, steps, { pointed: (step) => show(nearest(step)) }));
  const grids = maps.map((map) => {
    const [, layers, heads] = map.value.shape;
    return lab.grid({ layers, heads });
  });
  const told = lab.told();

  let timer = null;
  const stop = () => { clearInterval(timer); timer = null; play.setAttribute("aria-pressed", "false"); };
  const play = lab.toggle("Play", false, (now) => {
    if (!now) { stop(); return; }
    let i = Number(slider.input.value) === last ? 0 : Number(slider.input.value);
    timer = setInterval(() => { show(i); i += 1; if (i > last) stop(); }, 150);
  });

  const events = view.events.map((event) => lab.element("button", {
    type: "button", onclick: () => show(nearest(event.step)),
  }, `${event.label} (${lab.number(event.step)})`));

  const show = (i) => {
    slider.input.value = i;
    slider.shown.textContent = steps[i];
    slider.input.setAttribute("aria-valuetext", `step ${steps[i]}`);
    panels.forEach((panel) => panel.mark(steps[i]));

    grids.forEach((grid, m) => {
      const [, layers, heads] = maps[m].value.shape;
      const row = values[m].row(i);
      const value = (layer, head) => row[layer * heads + head];
      grid.paint(value, maps[m].colour, (layer, head) => `L${layer}H${head} ${lab.share(value(layer, head))}`);
    });

    const now = (panel) => panel.lines
      .filter((line) => line.values[i] !== null)
      .map((line) => `${line.label} ${lab.number(line.values[i])}`);
    const said = view.panels.filter((panel) => now(panel).length)
      .map((panel) => `${panel.title}: ${now(panel).join(", ")}`);
    told.textContent = `Step ${steps[i]}. ${said.join(". ")}.`;
  };

  root.append(
    lab.element("p", { class: "quiet" }, view.says),
    lab.element("div", { class: "controls" }, slider.root, play, events),
    told,
    lab.element("div", { class: "side" }, maps.map((map, m) =>
      lab.element("div", {}, lab.element("h5", {}, map.label), grids[m].root))),
    lab.element("div", { class: "curves" }, panels.map((panel) => panel.root)));
  show(last);
};
