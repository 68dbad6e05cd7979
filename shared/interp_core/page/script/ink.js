// Words as they were drawn: a drawing for each, side by side.

/** Where a drawing begins and how large it is, with a margin, in units of the pen. */
lab.extent = function (points) {
  const [xs, ys] = [0, 1].map((axis) => points.map((point) => point[axis]));
  const [left, top] = [Math.min(...xs) - 0.1, Math.min(...ys) - 0.1];
  return { left, top, width: Math.max(...xs) - left + 0.1, height: Math.max(...ys) - top + 0.1 };
};

/** Strokes of a word, in a frame of the given size; points are [x, y, pen down]. */
lab.word = function (points, colour, label, width, height) {
  const { left, top } = lab.extent(points);
  const moves = points.map(([x, y, down], i) => `${i && down ? "L" : "M"}${x} ${y}`).join("");

  return lab.drawn("svg", {
    class: "ink", role: "img", "aria-label": label, viewBox: `${left} ${top} ${width} ${height}`,
  }, lab.drawn("path", {
    d: moves, fill: "none", stroke: `var(--${colour})`, "stroke-width": 0.045, "stroke-linecap": "round", "stroke-linejoin": "round",
  }));
};

lab.views.ink = function (root, view) {
  const place = lab.element("div", { class: "words" });

  const show = (group) => {
    const { drawings } = view.groups[group];
    // One scale for all: a large word is drawn large.
    const extents = drawings.map((drawing) => lab.extent(drawing.points));
    const [width, height] = ["width", "height"].map((side) => Math.max(...extents.map((extent) => extent[side])));

    place.replaceChildren(...drawings.map((drawing) => lab.element("figure", {},
      lab.word(drawing.points, drawing.colour, `${drawing.label}, drawn`, width, height),
      lab.element("figcaption", {}, drawing.label))));
  };

  const says = lab.element("p", { class: "quiet" });
  const choose = (group) => { says.textContent = view.groups[group].says; show(group); };

  root.append(
    lab.element("div", { class: "controls" }, lab.choice("Show", view.groups.map((group) => group.name), choose)),
    says, place);
  choose(0);
};
