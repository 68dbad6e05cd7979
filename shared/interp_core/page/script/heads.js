// Every head of a model, and behind each what it looks at and what is lost without it.

lab.views.heads = function (root, view) {
  const state = { score: 0, text: 0, layer: 0, head: 0, query: 0 };
  const told = lab.told();

  const say = (layer, head) => {
    const { value, low, high, label } = view.scores[state.score];
    const ends = low ? ` [${lab.share(low[layer][head])}, ${lab.share(high[layer][head])}]` : "";
    return `L${layer}H${head} ${lab.share(value[layer][head])}${ends}, ${label}`;
  };

  const grid = lab.grid({
    layers: view.layers, heads: view.heads, found: view.found,
    pointed: (layer, head) => (told.textContent = say(layer, head)),
    chosen: (layer, head) => { Object.assign(state, { layer, head }); show(); },
  });

  const says = lab.element("p", { class: "quiet" });
  const paint = () => {
    const score = view.scores[state.score];
    grid.paint((layer, head) => score.value[layer][head], score.colour, say);
    const frame = view.found.length ? " A frame marks heads that pass the study's test." : "";
    says.textContent = `${score.says} ${view.n}.${frame}`;
  };

  // The switch is built once a text, so that what was chosen in it stays; a large model has none.
  const switches = view.texts.map((text) => (text.without ? lab.without(view, text) : null));
  const attention = view.texts.map((text) => lab.shares(text.attention));
  const place = lab.element("div");

  const show = () => {
    const text = view.texts[state.text];
    const { layer, head, query } = state;
    grid.press(layer, head);
    if (!text) return;
    const { colour } = view.scores[state.score];
    const changed = text.tokens.map((token, i) => token !== text.control[i]);
    const sides = [["the text", text.tokens], ["its control", text.control]];
    const point = (row, key) => {
      const words = sides.map(([name, tokens], side) => {
        const weight = lab.rowOf(attention[state.text].row(side, layer, head), row)[key];
        return `${name}: ${lab.visible(tokens[row])} → ${lab.visible(tokens[key])} ${lab.share(weight)}`;
      });
      pointed.textContent = words.join("; ");
    };
    const ask = (next, side) => {
      state.query = next;
      show();
      // What was tapped is new now: the focus goes on where it was.
      place.querySelectorAll(".text")[side].querySelectorAll(".token")[next].focus();
    };
    const pointed = lab.told();

    const panels = sides.map(([name, tokens], side) => {
      const entries = attention[state.text].row(side, layer, head);
      const weights = lab.rowOf(entries, query);
      return lab.element("div", {},
        lab.passage({
          tokens, changed, query, weights, colour, chosen: (next) => ask(next, side),
          label: `${name}; the chosen token is ${lab.visible(tokens[query])}`,
        }),
        lab.pattern({
          tokens, changed, entries, colour, query, pairs: text.pairs,
          title: `L${layer}H${head} over ${name}`,
          pointed: (row, key, tapped) => (tapped ? ask(row, side) : point(row, key)),
        }));
    });

    const switched = switches[state.text];
    switched?.show(layer, head, query);
    place.replaceChildren(
      lab.element("h4", {}, `L${layer}H${head} over ${text.title}`),
      lab.element("p", { class: "quiet" },
        "Rows look at columns. Tap a token to ask there. Outlined: the token after the earlier occurrence, " +
        "where an induction head looks. Coloured names: what the control replaced."),
      lab.element("div", { class: "side" }, panels), pointed,
      switched?.root ?? lab.element("p", { class: "quiet" },
        "What is predicted without a head is left out here: it takes a run of the model a head. " +
        "Its own page has it (induct page --model)."));
  };

  const best = view.scores[0].value.flatMap((row, layer) => row.map((value, head) => ({ value, layer, head })))
    .reduce((most, one) => (one.value > most.value ? one : most));
  Object.assign(state, { layer: best.layer, head: best.head, query: view.texts[0]?.pairs[0]?.[0] ?? 0 });

  const controls = lab.element("div", { class: "controls" },
    lab.choice("Score", view.scores.map((score) => score.label), (i) => { state.score = i; paint(); show(); }),
    view.texts.length > 1
      ? lab.choice("Text", view.texts.map((text) => text.title), (i) => {
        Object.assign(state, { text: i, query: view.texts[i].pairs[0][0] });
        show();
      })
      : null);

  root.append(says, controls, grid.root, told, place);
  paint();
  told.textContent = say(state.layer, state.head);
  show();
};
