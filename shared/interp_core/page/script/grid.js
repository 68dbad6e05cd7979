// A map of heads: a table of buttons, layer 0 on top. Arrow keys move, Enter chooses.

/**
 * @param {object} options layers, heads, found (names with a frame), pointed(layer, head),
 *   chosen(layer, head), small (cells without numbers)
 */
lab.grid = function (options) {
  const { layers, heads, found = [], pointed, chosen, small = false } = options;
  const cells = [];
  const named = new Set(found);

  const move = (event, layer, head) => {
    const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const step = steps[event.key];
    if (!step) return;
    event.preventDefault();
    const next = cells[layer + step[0]]?.[head + step[1]];
    next?.focus();
  };

  const cell = (layer, head) => {
    const name = `L${layer}H${head}`;
    const attributes = {
      class: named.has(name) ? "found" : "", "data-head": name, "--amount": 0,
      ...(chosen && {
        type: "button", "aria-pressed": "false", tabindex: layer === 0 && head === 0 ? 0 : -1,
        onclick: () => chosen(layer, head),
        onpointerenter: () => pointed?.(layer, head),
        onfocus: () => { rove(layer, head); pointed?.(layer, head); },
        onkeydown: (event) => move(event, layer, head),
      }),
    };
    const made = lab.element(chosen ? "button" : "span", attributes);
    if (!chosen) made.classList.add("cell");
    return made;
  };

  // One cell of the map is in the order of the Tab key, the one that was last used.
  const rove = (layer, head) => {
    cells.flat().forEach((one) => one.setAttribute("tabindex", -1));
    cells[layer][head].setAttribute("tabindex", 0);
  };

  for (let layer = 0; layer < layers; layer += 1) {
    cells.push(Array.from({ length: heads }, (_, head) => cell(layer, head)));
  }

  const row = (layer) => lab.element("tr", {},
    lab.element("th", { scope: "row" }, `L${layer}`),
    cells[layer].map((one) => lab.element("td", {}, one)));

  const header = lab.element("thead", {}, lab.element("tr", {}, lab.element("td"),
    Array.from({ length: heads }, (_, head) => lab.element("th", { scope: "col" }, `H${head}`))));

  const rows = Array.from({ length: layers }, (_, layer) => row(layer));
  const table = lab.element("table", { class: `grid${small ? " small" : ""}` }, small ? null : header,
    lab.element("tbody", {}, rows));

  return {
    root: lab.element("div", { class: "scroll" }, table),

    /** Colour every cell by a score in [0, 1]; `label(layer, head)` is read aloud. */
    paint(value, colour, label) {
      table.style.setProperty("--tone", `var(--${colour})`);
      cells.forEach((inLayer, layer) => inLayer.forEach((one, head) => {
        const amount = Math.max(0, Math.min(1, value(layer, head) ?? 0));
        one.style.setProperty("--amount", amount.toFixed(3));
        one.classList.toggle("strong", amount > 0.55);
        if (!small) one.textContent = lab.share(value(layer, head));
        if (label) one.setAttribute("aria-label", label(layer, head));
        if (label) one.title = label(layer, head);
      }));
    },

    press(layer, head) {
      cells.flat().forEach((one) => one.setAttribute("aria-pressed", "false"));
      cells[layer][head].setAttribute("aria-pressed", "true");
      rove(layer, head);
    },

    cells,
  };
};
