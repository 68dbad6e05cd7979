// One head over real tokens: the text and its control, tokens on both axes, and the text itself.

const CELL = 11; // pixels of one token on an axis
const LABEL = 92; // pixels for the tokens' names

/** A causal pattern as a drawing; `pointed(query, key)` follows the pointer, `full` has full colour. */
lab.pattern = function ({ tokens, changed, pairs, entries, colour, title, query, pointed, full = 1 }) {
  const size = tokens.length * CELL;
  const short = (token) => lab.visible(token).slice(0, 12);
  const squares = [];

  for (let row = 0; row < tokens.length; row += 1) {
    lab.rowOf(entries, row).forEach((weight, key) => {
      // What is fainter than one hundredth is not seen, and would be half of all squares.
      if (weight < 0.01) return;
      squares.push(lab.drawn("rect", {
        x: key * CELL, y: row * CELL, width: CELL, height: CELL,
        fill: `var(--${colour})`, "fill-opacity": Math.min(1, weight / full).toFixed(3),
      }));
    });
  }

  const frames = pairs.map(([row, key]) => lab.drawn("rect", {
    class: "pair", x: key * CELL + 0.5, y: row * CELL + 0.5, width: CELL - 1, height: CELL - 1,
  }));

  const names = tokens.flatMap((token, i) => {
    const kind = changed[i] ? "changed" : "";
    const middle = i * CELL + CELL / 2 + 3;
    return [
      lab.drawn("text", { class: kind, x: -4, y: middle, "text-anchor": "end" }, short(token)),
      lab.drawn("text", { class: kind, transform: `translate(${middle}, -4) rotate(-90)` }, short(token)),
    ];
  });

  const band = lab.drawn("rect", { class: "band", x: 0, y: query * CELL, width: size, height: CELL });

  const follow = (event) => {
    const box = drawing.getBoundingClientRect();
    const place = (at) => Math.floor((at - LABEL) / CELL);
    const key = place(event.clientX - box.left);
    const row = place(event.clientY - box.top);
    if (key >= 0 && key <= row && row < tokens.length) pointed(row, key, event.type === "click");
  };

  const drawing = lab.drawn("svg", {
    class: "pattern", role: "img", "aria-label": title,
    width: size + LABEL + 2, height: size + LABEL + 2,
    viewBox: `${-LABEL} ${-LABEL} ${size + LABEL + 2} ${size + LABEL + 2}`,
    onpointermove: follow, onclick: follow,
  }, band, squares, frames, names, lab.drawn("rect", { class: "frame", width: size, height: size }));

  return lab.element("figure", {},
    lab.element("figcaption", {}, title),
    lab.element("div", { class: "scroll" }, drawing));
};

/** The text as words to tap: shaded by what the chosen word looks at. Arrow keys go from word to word. */
lab.passage = function ({ tokens, changed, query, weights, colour, label, chosen, full = 1 }) {
  const marks = tokens.map((token, i) => {
    const amount = weights?.[i] ?? 0;
    const depth = Math.min(1, amount / full);
    const kinds = ["token", changed[i] ? "changed" : "", depth > 0.55 ? "strong" : ""];
    return lab.element("button", {
      type: "button", class: kinds.join(" ").trim(),
      "--amount": depth.toFixed(3), "--tone": `var(--${colour})`,
      "aria-pressed": String(i === query), tabindex: i === query ? 0 : -1,
      title: weights ? `${lab.share(amount)} of the attention` : "",
      onclick: () => chosen(i),
      onkeydown: (event) => {
        const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
        if (!step) return;
        event.preventDefault();
        chosen(Math.max(0, Math.min(tokens.length - 1, i + step)));
      },
    }, token.startsWith(" ") ? lab.element("span", { class: "space", "aria-hidden": "true" }, "·") : "",
    lab.visible(token).replace(/^·/, ""));
  });

  return lab.element("p", { class: "text", role: "group", "aria-label": label }, marks);
};
