// A Mamba's reads: how much each layer reads around an earlier occurrence, and what cutting a read costs.

lab.views.offsets = function (root, view) {
  const state = { layer: view.layers.length - 1 };
  const place = lab.element("div");

  /** Values by offset with their intervals, beside what chance gives. */
  const bars = (title, unit, rows, colour, says) => {
    const drawing = Plot.plot({
      width: 420, height: 220, marginLeft: 56, marginBottom: 36,
      x: { label: "place read, from the earlier occurrence", domain: rows.map((row) => row.offset), type: "band" },
      y: { label: unit, grid: true, ticks: 5 },
      style: { fontSize: "12px", fontFamily: "inherit" },
      ariaLabel: `${title}: ${rows.map((row) => `${row.offset} ${lab.number(row.value)}`).join(", ")}`,
      marks: [
        Plot.barY(rows, { x: "offset", y: "value", fill: `var(--${colour})`, fillOpacity: 0.75 }),
        Plot.ruleX(rows, { x: "offset", y1: "low", y2: "high", stroke: "var(--ink)" }),
        Plot.tickY(rows.filter((row) => row.control !== null && row.control !== undefined), {
          x: "offset", y: "control", stroke: "var(--null)", strokeWidth: 3,
        }),
        Plot.ruleY([0]),
        Plot.tip(rows, Plot.pointerX({
          x: "offset", y: "value",
          title: (row) => `${row.offset}: ${lab.number(row.value)} [${lab.number(row.low)}, ${lab.number(row.high)}]` +
            (row.control === undefined || row.control === null ? "" : `\ncontrol ${lab.number(row.control)}`),
        })),
      ],
    });
    drawing.setAttribute("role", "img");
    return lab.element("figure", {}, lab.element("h5", {}, title), lab.element("p", { class: "quiet" }, says), drawing);
  };

  const show = () => {
    const layer = view.layers[state.layer];
    place.replaceChildren(lab.element("div", { class: "curves" },
      bars(`${layer.name} reads`, "attention", layer.profile, "induction", "Bar: hidden attention; grey: in the control."),
      layer.cuts.length
        ? bars(`${layer.name} without one read`, "change of accuracy", layer.cuts, "ablated", "Bar: this read cut; grey: as many random reads cut.")
        : ""));
  };

  const controls = lab.choice("Layer", view.layers.map((layer) => layer.name), (i) => { state.layer = i; show(); });
  controls.querySelector("select").selectedIndex = state.layer;

  const hidden = lab.element("div");
  if (view.hidden) lab.hidden(hidden, view.hidden);
  root.append(lab.element("p", { class: "quiet" }, view.says), lab.element("div", { class: "controls" }, controls), place, hidden);
  show();
};

/**
 * What gets the full colour: the largest share in the later half of the text, of both sides.
 * A Mamba looks at many tokens a little, and at few of them early, where there are few.
 */
lab.strong = function (sides, length) {
  const later = Math.floor(length / 2);
  return Math.max(...sides.flatMap((entries) => [...entries.subarray((later * (later + 1)) / 2)]));
};

/** Hidden attention of each layer over real tokens, clean beside control. */
lab.hidden = function (root, hidden) {
  const state = { layer: hidden.names.length - 1, query: hidden.pairs[0]?.[0] ?? 0 };
  const weights = lab.shares(hidden.attention);
  const changed = hidden.tokens.map((token, i) => token !== hidden.control[i]);
  const place = lab.element("div");
  const says = lab.element("p", { class: "quiet" });

  const show = () => {
    const pointed = lab.told();
    const sides = [["the text", hidden.tokens], ["its control", hidden.control]];
    const full = lab.strong(sides.map((_, side) => weights.row(side, state.layer)), hidden.tokens.length);
    says.textContent = `${hidden.says} Full colour from ${lab.share(full)} on, on both sides.`;

    const ask = (next, side) => {
      state.query = next;
      show();
      place.querySelectorAll(".text")[side].querySelectorAll(".token")[next].focus();
    };
    const panels = sides.map(([name, tokens], side) => {
      const entries = weights.row(side, state.layer);
      return lab.element("div", {},
        lab.passage({
          tokens, changed, query: state.query, weights: lab.rowOf(entries, state.query), colour: "induction",
          label: name, full, chosen: (next) => ask(next, side),
        }),
        lab.pattern({
          tokens, changed, entries, pairs: hidden.pairs, colour: "induction", query: state.query, full,
          title: `${hidden.names[state.layer]} over ${name}`,
          pointed: (row, key, tapped) => {
            if (tapped) ask(row, side);
            else pointed.textContent = `${lab.visible(tokens[row])} → ${lab.visible(tokens[key])} ${lab.share(lab.rowOf(entries, row)[key])}`;
          },
        }));
    });
    place.replaceChildren(lab.element("div", { class: "side" }, panels), pointed);
  };

  const layers = lab.choice("Hidden attention of", hidden.names, (i) => { state.layer = i; show(); });
  layers.querySelector("select").selectedIndex = state.layer;
  root.append(lab.element("h4", {}, "Hidden attention over tokens"), says,
    lab.element("div", { class: "controls" }, layers), place);
  show();
};
