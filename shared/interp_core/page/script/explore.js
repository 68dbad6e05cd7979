// A model live: the text is read as it is typed, heads are taken away by a click.

lab.explore = function (root, view) {
  const state = { reading: null, off: new Set(), layer: 0, head: 0, query: 0, asked: 0, without: null };
  const name = (layer, head) => `L${layer}H${head}`;

  const ask = async (what, content) => {
    const answer = await fetch(what, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(content),
    });
    const found = await answer.json();
    if (!answer.ok) throw new Error(found.error);
    return found;
  };

  const text = lab.element("textarea", { "aria-label": "Text", spellcheck: "false", oninput: () => later() });
  text.value = view.text;
  const told = lab.told();
  const scored = lab.told();
  const place = lab.element("div");
  const effect = lab.element("div");
  const look = lab.toggle("Click only looks", false, () => {});

  const score = (layer, head) => state.reading?.score?.[layer][head] ?? null;
  const label = (layer, head) => {
    const off = state.off.has(name(layer, head)) ? ", taken away" : "";
    return `${name(layer, head)} ${lab.share(score(layer, head))}${off}`;
  };

  const grid = lab.grid({
    layers: view.layers, heads: view.heads,
    pointed: (layer, head) => (scored.textContent = label(layer, head)),
    chosen: (layer, head) => {
      Object.assign(state, { layer, head });
      if (look.getAttribute("aria-pressed") !== "true") {
        const one = name(layer, head);
        if (!state.off.delete(one)) state.off.add(one);
        take();
      }
      show();
    },
  });

  /** Read what is typed once the typing rests; an answer that is overtaken by another is dropped. */
  let resting = null;
  const later = () => { clearTimeout(resting); resting = setTimeout(read, 350); };

  const read = async () => {
    const mine = (state.asked += 1);
    told.textContent = "Reading…";
    try {
      const reading = await ask("read", { text: text.value });
      if (mine !== state.asked) return;
      const copied = reading.pairs.length;
      Object.assign(state, { reading, query: copied ? reading.pairs[0][0] : reading.tokens.length - 2 });
      told.textContent = copied
        ? `${reading.tokens.length} tokens, ${copied} of them copied from before.`
        : `${reading.tokens.length} tokens; none repeats what stood before, so no head has an induction score.`;
      if (!state.painted && copied) begin();
      show();
      take();
    } catch (problem) {
      if (mine === state.asked) told.textContent = problem.message;
    }
  };

  /** At the first text: the head that looks most where an induction head looks. */
  const begin = () => {
    state.painted = true;
    state.reading.score.forEach((inLayer, layer) => inLayer.forEach((value, head) => {
      if (value > score(state.layer, state.head)) Object.assign(state, { layer, head });
    }));
  };

  const take = async () => {
    state.without = null;
    if (!state.off.size) { showEffect(); return; }
    const mine = (state.asked += 1);
    const heads = [...state.off].map((one) => one.slice(1).split("H").map(Number));
    try {
      const without = await ask("without", { text: text.value, heads });
      if (mine !== state.asked) return;
      state.without = without;
      showEffect();
    } catch (problem) {
      if (mine === state.asked) told.textContent = problem.message;
    }
  };

  const paint = () => {
    grid.paint((layer, head) => score(layer, head), "induction", label);
    grid.cells.forEach((inLayer, layer) => inLayer.forEach((cell, head) => {
      const off = state.off.has(name(layer, head));
      cell.setAttribute("aria-pressed", String(off));
      cell.classList.toggle("off", off);
      cell.classList.toggle("seen", layer === state.layer && head === state.head);
    }));
  };

  const show = () => {
    const { tokens, pairs, attention } = state.reading;
    const { layer, head, query } = state;
    const entries = lab.shares(attention).row(layer, head);
    const pointed = lab.told();
    const unchanged = tokens.map(() => false);
    const choose = (next) => {
      state.query = next;
      show();
      showEffect();
      place.querySelectorAll(".token")[next].focus();
    };

    paint();
    place.replaceChildren(
      lab.element("h2", {}, `${name(layer, head)} over the text`),
      lab.passage({
        tokens, changed: unchanged, query, weights: lab.rowOf(entries, query), colour: "induction",
        label: "the text; tap a token to ask there", chosen: choose,
      }),
      lab.pattern({
        tokens, changed: unchanged, entries, pairs, colour: "induction", query,
        title: "Rows look at columns; outlined: the token after the earlier occurrence",
        pointed: (row, key, tapped) => {
          if (tapped) choose(row);
          else pointed.textContent = `${lab.visible(tokens[row])} → ${lab.visible(tokens[key])} ${lab.share(lab.rowOf(entries, row)[key])}`;
        },
      }), pointed);
    showEffect();
  };

  const showEffect = () => {
    const { tokens, pairs, whole } = state.reading;
    const last = tokens.length - 1;
    const copied = pairs.map(([query]) => query);
    const places = copied.length ? copied : tokens.slice(1).map((_, i) => i);
    const mean = (found) => lab.mean(places.map((at) => found.loss[at]));
    const column = (title, found) => ({
      label: title, top: found.top[state.query], probability: found.probability[state.query],
    });

    const rows = [{ label: "whole model", value: mean(whole), colour: "ink" }];
    const columns = state.query < last ? [column("whole model", whole)] : [];
    let control = "";

    if (state.without) {
      const { without, random, names } = state.without;
      const values = random.map(mean);
      const taken = `without ${[...state.off].join(", ")}`;
      rows.push({ label: taken, value: mean(without), colour: "ablated" });
      if (columns.length) columns.push(column(taken, without));

      if (random.length) {
        rows.push({
          label: `without random ones (${lab.counted(random.length, "set")}, range)`,
          value: lab.mean(values), low: Math.min(...values), high: Math.max(...values), colour: "null",
        });
        if (columns.length) columns.push(column(`without ${names[0].join(", ")}`, random[0]));
        control = view.unit === "head" ? `Random heads of the same layers: ${names.map((one) => one.join(", ")).join("; ")}.` : `Random other layers: ${names.map((one) => one.join(", ")).join("; ")}.`;
      } else control = "There are no other heads to take away instead, so there is no control.";
    }

    effect.replaceChildren(
      lab.element("h2", {}, "Predictions"),
      state.off.size ? "" : lab.element("p", { class: "quiet" }, "Tap heads of the map to take them away."),
      lab.losses(rows, copied.length ? lab.counted(copied.length, "copied token") : "all tokens"),
      columns.length ? lab.predictions(columns, tokens[state.query + 1]) : "",
      lab.element("p", { class: "quiet" }, control));
  };

  const all = lab.element("button", {
    type: "button", onclick: () => { state.off.clear(); take(); show(); },
  }, "Put all heads back");

  root.append(
    lab.element("p", { class: "quiet" }, `Type up to ${view.longest - 1} tokens. The map shows each head's attention to the token after the earlier occurrence, where the text repeats itself.`),
    text, told, lab.element("div", { class: "controls" }, look, all),
    lab.element("div", { class: "side" }, lab.element("div", {}, grid.root, scored), effect), place);
  read();
};

{
  const root = document.querySelector('[data-view="explore"]');
  lab.explore(root, JSON.parse(document.getElementById(`${root.id}-data`).textContent));
}
