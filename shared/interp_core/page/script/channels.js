// Channels of a Mamba as a table that can be sorted, and as a cloud: effect against memory.

lab.views.channels = function (root, view) {
  const state = { by: 1, down: true, all: false };
  const { columns, rows } = view; // rows: [name, number, number, ...], None as null
  const some = 20;
  const table = lab.element("table", { class: "channels" });

  const sorted = () => [...rows].sort((one, other) => {
    const [a, b] = [one[state.by], other[state.by]];
    if (a === null || b === null) return (a === null) - (b === null);
    const order = typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
    return state.down ? -order : order;
  });

  const heading = (column, i) => {
    const order = i === state.by ? (state.down ? "descending" : "ascending") : "none";
    const arrow = i === state.by ? (state.down ? " ↓" : " ↑") : "";
    const sort = () => {
      state.down = i === state.by ? !state.down : i > 0;
      state.by = i;
      show();
      table.querySelectorAll("th button")[i].focus();
    };
    return lab.element("th", { scope: "col", "aria-sort": order, title: column.says },
      lab.element("button", { type: "button", onclick: sort }, column.label + arrow));
  };

  const show = () => {
    const shown = state.all ? sorted() : sorted().slice(0, some);
    table.replaceChildren(
      lab.element("caption", {}, `${shown.length} of ${rows.length} channels`),
      lab.element("thead", {}, lab.element("tr", {}, columns.map(heading))),
      lab.element("tbody", {}, shown.map((row) => lab.element("tr", {}, row.map((value, i) =>
        lab.element(i ? "td" : "th", i ? { class: "number" } : { scope: "row" }, i ? lab.number(value) : value))))));
  };

  const [x, y] = view.cloud;
  const points = rows.filter((row) => row[x] > 0 && row[y] > 0);
  const drawing = Plot.plot({
    width: 460, height: 300, marginLeft: 60, marginBottom: 40,
    x: { label: columns[x].says, type: "log", tickFormat: lab.number, ticks: 5 },
    y: { label: columns[y].says, type: "log", tickFormat: lab.number, grid: true, ticks: 5 },
    style: { fontSize: "12px", fontFamily: "inherit" },
    ariaLabel: `${columns[y].label} against ${columns[x].label} of ${points.length} channels; the table has the numbers`,
    marks: [
      Plot.dot(points, { x: (row) => row[x], y: (row) => row[y], r: 2.5, fill: "var(--induction)", fillOpacity: 0.6 }),
      Plot.tip(points, Plot.pointer({
        x: (row) => row[x], y: (row) => row[y],
        title: (row) => `${row[0]}\n${columns[x].label} ${lab.number(row[x])}\n${columns[y].label} ${lab.number(row[y])}`,
      })),
    ],
  });
  drawing.setAttribute("role", "img");

  const all = lab.toggle("All channels", false, (now) => { state.all = now; show(); });
  const control = view.panel ? lab.panel(view.panel, view.sizes, { xLabel: "channels ablated", height: 300 }).root : "";
  root.append(
    lab.element("p", { class: "quiet" }, view.says),
    lab.element("div", { class: "curves" }, lab.element("figure", {}, lab.element("h5", {}, view.cloudTitle), drawing), control),
    lab.element("div", { class: "controls" }, all),
    lab.element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Channels" }, table));
  show();
};
