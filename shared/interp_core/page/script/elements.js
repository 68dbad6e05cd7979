// Elements without any HTML in strings: text from models and users is only ever text.

/** An element with attributes (`on...` are listeners) and children, strings among them. */
lab.element = function (tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  lab.set(element, attributes);
  element.append(...children.flat().filter((child) => child !== null));
  return element;
};

/** The same for drawings. */
lab.drawn = function (tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  lab.set(element, attributes);
  element.append(...children.flat().filter((child) => child !== null));
  return element;
};

lab.set = function (element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) element.style.setProperty(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
};

/** A labelled choice; `chosen(index)` is called when it changes. */
lab.choice = function (label, options, chosen) {
  const select = lab.element(
    "select",
    { onchange: () => chosen(select.selectedIndex) },
    options.map((option) => lab.element("option", {}, option)),
  );
  return lab.element("label", {}, label, select);
};

/** A labelled slider over 0 .. last. */
lab.slider = function (label, last, value, moved) {
  const shown = lab.element("output", { class: "number" });
  const input = lab.element("input", {
    type: "range", min: 0, max: last, value, "aria-label": label,
    oninput: () => moved(Number(input.value)),
  });
  return { root: lab.element("label", {}, label, input, shown), input, shown };
};

/** A button that stays pressed. */
lab.toggle = function (label, pressed, changed) {
  const button = lab.element("button", {
    type: "button", "aria-pressed": String(pressed),
    onclick: () => {
      const now = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(now));
      changed(now);
    },
  }, label);
  return button;
};

/** A token as a reader can tell it from its neighbours: spaces and line ends have signs. */
lab.visible = (token) => token.replaceAll("\n", "↵").replaceAll("\t", "⇥").replace(/^ /, "·") || "∅";

/** Which parts of a text may be tapped, and which are read aloud as they change. */
lab.told = () => lab.element("p", { class: "told", role: "status", "aria-live": "polite" });
