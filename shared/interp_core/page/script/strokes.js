// A row of ink: point at a stroke to see which strokes and characters each head reads there.

lab.views.strokes = function (root, view) {
  const state = { layer: view.best[0], head: view.best[1], slot: 1, at: Math.floor(view.strokes.length * 0.75) };
  const points = view.strokes;
  const { left, top, width, height } = lab.extent(points);
  const told = lab.told();
  // A word and a row of strokes differ in size; as drawn on a desk's page, a pixel is this wide.
  const pixel = Math.max(width / 1180, height / 256);

  const lines = points.map((point, i) => lab.drawn("line", i && {
    x1: points[i - 1][0], y1: points[i - 1][1], x2: point[0], y2: point[1], "stroke-linecap": "round",
  }));
  const dot = lab.drawn("circle", { r: 9 * pixel, fill: "var(--ablated)" });
  const drawing = lab.drawn("svg", {
    class: "ink", role: "application", tabindex: 0,
    "aria-label": `A row of ${points.length} strokes; arrow keys go from stroke to stroke`,
    viewBox: `${left} ${top} ${width} ${height}`,
  }, lines, dot);

  const letters = view.letters.map((letter) => lab.element("span", { class: "token" }, letter === " " ? "␣" : letter));
  const grid = lab.grid({
    layers: view.self.length, heads: view.self[0].length, small: true,
    chosen: (layer, head) => { Object.assign(state, { layer, head }); show(); },
  });

  /** Attention to strokes: a stroke is two tokens, its direction and its radius. */
  const byStroke = () => {
    const row = new Map(view.self[state.layer][state.head][2 * state.at + state.slot]);
    return view.position.map((position) => ((row.get(position) ?? 0) + (row.get(position - 1) ?? 0)) / 100);
  };

  const show = () => {
    const weights = byStroke();
    // A head that looks everywhere a little is drawn thin, not as thick as one that looks at one place.
    const most = Math.max(0.25, ...weights);
    lines.forEach((line, i) => lab.set(line, {
      stroke: weights[i] >= 0.01 ? "var(--induction)" : points[i][2] ? "var(--rule)" : "none",
      "stroke-width": pixel * (4 + 10 * (weights[i] / most)),
    }));
    lab.set(dot, { cx: points[state.at][0], cy: points[state.at][1] });

    const read = new Map(view.cross[state.layer][state.head][2 * state.at + state.slot]);
    letters.forEach((letter, i) => {
      const amount = (read.get(i) ?? 0) / 100;
      lab.set(letter, { "--amount": amount.toFixed(2), "--tone": "var(--previous)" });
      letter.title = lab.share(amount);
    });

    const best = weights.indexOf(Math.max(...weights));
    told.textContent = `L${state.layer}H${state.head} at stroke ${state.at} looks most at stroke ${best}, ${lab.share(weights[best])}.`;
    grid.press(state.layer, state.head);
  };

  drawing.addEventListener("pointermove", (event) => {
    const place = new DOMPoint(event.clientX, event.clientY).matrixTransform(drawing.getScreenCTM().inverse());
    const distance = (point) => (point[0] - place.x) ** 2 + (point[1] - place.y) ** 2;
    state.at = points.reduce((near, point, i) => (distance(point) < distance(points[near]) ? i : near), 0);
    show();
  });
  drawing.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    state.at = Math.max(0, Math.min(points.length - 1, state.at + step));
    show();
  });

  const where = view.recurs ? "to what followed the earlier occurrence" : "to one place, the mean of the most";
  grid.paint((layer, head) => view.matching[layer][head], "induction",
    (layer, head) => `L${layer}H${head}, ${lab.share(view.matching[layer][head])} ${where}`);
  root.append(
    lab.element("p", { class: "quiet" }, view.says),
    lab.element("div", { class: "controls" }, grid.root,
      lab.choice("Asked at", ["the whole stroke", "its direction"], (i) => { state.slot = 1 - i; show(); })),
    drawing,
    lab.element("p", { class: "text", "aria-label": "characters" }, letters), told);
  show();
};
