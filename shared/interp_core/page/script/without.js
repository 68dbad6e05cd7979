// What becomes of the predictions without a head, or without the best k, beside random heads.

/** Where a set of heads stands in the list: the whole model, every head alone, the best k, random ones. */
lab.sets = function (without, layers, heads) {
  const single = layers * heads;
  const { sizes } = without;
  const kept = 1 + single + sizes.length;
  const counts = without.random.map((control) => control.count);
  const before = (i) => counts.slice(0, i);
  const random = (i) => kept + before(i).reduce((sum, count) => sum + count, 0);
  const shown = (i) => kept + before(i).filter((count) => count > 0).length;

  return {
    alone: (layer, head) => ({ loss: 1 + layer * heads + head, shown: 1 + layer * heads + head }),
    others: (layer, head) => Array.from({ length: heads }, (_, other) => other)
      .filter((other) => other !== head)
      .map((other) => 1 + layer * heads + other),
    best: (i) => ({ loss: 1 + single + i, shown: 1 + single + i }),
    random: (i) => ({ all: Array.from({ length: counts[i] }, (_, draw) => random(i) + draw), shown: shown(i) }),
  };
};

/** Loss over some places, as rows of a table with bars; `places` says which. */
lab.losses = function (rows, places) {
  const most = Math.max(...rows.map((row) => row.high ?? row.value));
  const bar = () => lab.element("span", { class: "bar", "aria-hidden": "true" });

  return lab.element("table", { class: "losses" },
    lab.element("caption", {}, `Loss, nats a token: ${places}`),
    lab.element("tbody", {}, rows.map((row) => {
      const mark = bar();
      mark.style.width = `${(8 * row.value) / Math.max(most, 1e-9)}rem`;
      mark.style.color = `var(--${row.colour})`;
      const ends = row.low === undefined ? "" : ` [${lab.number(row.low)}, ${lab.number(row.high)}]`;
      return lab.element("tr", {},
        lab.element("th", { scope: "row" }, row.label),
        lab.element("td", { class: "number" }, mark, `${lab.number(row.value)}${ends}`));
    })));
};

/** The likeliest next tokens in each column's model; the one that follows is marked. */
lab.predictions = function (columns, target) {
  const ranks = columns[0].top.map((_, rank) => rank);
  const cell = (column, rank) => {
    const word = column.top[rank];
    return lab.element("td", { class: word === target ? "right" : "" },
      `${lab.share(column.probability[rank])} ${lab.visible(word)}`);
  };

  return lab.element("div", { class: "scroll" }, lab.element("table", { class: "predictions" },
    lab.element("caption", {}, `Next token after the chosen one; in the text it is “${lab.visible(target)}”`),
    lab.element("thead", {}, lab.element("tr", {},
      columns.map((column) => lab.element("th", { scope: "col" }, column.label)))),
    lab.element("tbody", {}, ranks.map((rank) => lab.element("tr", {},
      columns.map((column) => cell(column, rank)))))));
};

/** The switch: this head, or the best k, or nothing; always with its random control. */
lab.without = function (view, text) {
  const { without } = text;
  const sets = lab.sets(without, view.layers, view.heads);
  const probability = lab.shares(without.probability);
  const copied = text.pairs.map(([query]) => query);
  const state = { mode: "head", size: 0, layer: 0, head: 0, query: 0 };
  const body = lab.element("div");

  const mean = (set) => lab.mean(copied.map((query) => without.loss[set][query]));
  const range = (all) => {
    const values = all.map(mean);
    return { value: lab.mean(values), low: Math.min(...values), high: Math.max(...values) };
  };
  const column = (label, shown) => ({
    label,
    top: without.top[shown][state.query].map((word) => without.words[word]),
    probability: probability.row(shown, state.query),
  });

  const draw = () => {
    const best = state.mode === "best";
    const name = `L${state.layer}H${state.head}`;
    const size = without.sizes[state.size];
    const label = best ? `without the best ${size}` : `without ${name}`;
    const chosen = best ? sets.best(state.size) : sets.alone(state.layer, state.head);
    const others = best ? sets.random(state.size).all : sets.others(state.layer, state.head);
    const random = without.random[state.size];
    const control = best
      ? `without ${size} random heads ${random.where} (${lab.counted(random.count, "set")}, range)`
      : `without another head of layer ${state.layer} (${others.length}, range)`;

    const rows = [
      { label: "whole model", value: mean(0), colour: "ink" },
      { label, value: mean(chosen.loss), colour: "ablated" },
    ];
    if (others.length) rows.push({ label: control, ...range(others), colour: "null" });

    const columns = [column("whole model", 0), column(label, chosen.shown)];
    const other = (state.head + 1) % view.heads;
    if (best && others.length) columns.push(column("without random heads", sets.random(state.size).shown));
    else if (others.length) {
      columns.push(column(`without L${state.layer}H${other}`, sets.alone(state.layer, other).shown));
    }

    const last = text.tokens.length - 1;
    body.replaceChildren(
      lab.losses(rows, `${lab.counted(copied.length, "place")} where the text copies itself`),
      state.query < last
        ? lab.predictions(columns, text.tokens[state.query + 1])
        : lab.element("p", { class: "quiet" }, "Nothing follows the last token."),
      best ? lab.element("p", { class: "quiet" },
        `The best by ${view.scores[0].label}: ${without.ranked.slice(0, size).join(", ")}. ` +
        `Random: ${random.first.join(", ") || "too few others for a control"}.`) : "",
    );
  };

  const modes = lab.choice("Take away", ["the chosen head", ...without.sizes.map((k) => `the best ${k}`)], (i) => {
    state.mode = i === 0 ? "head" : "best";
    state.size = Math.max(0, i - 1);
    draw();
  });

  return {
    root: lab.element("div", { class: "without" },
      lab.element("h4", {}, "Without heads"),
      lab.element("p", { class: "quiet" }, "Heads are replaced by their mean vector over the text and its control."),
      lab.element("div", { class: "controls" }, modes), body),
    show(layer, head, query) {
      Object.assign(state, { layer, head, query });
      draw();
    },
  };
};
