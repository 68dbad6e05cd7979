// Arrays as the page carries them: bytes in base64 for numbers in [0, 1], lists for everything else.

"use strict";

const lab = { views: {} };

/** Decode { shape, bytes } once; `at(i, j, ...)` gives where a run of the last axis begins. */
lab.shares = function (packed) {
  const bytes = Uint8Array.from(atob(packed.bytes), (character) => character.charCodeAt(0));
  const { shape } = packed;

  const start = (...place) => {
    let offset = 0;
    place.forEach((index, axis) => (offset = offset * shape[axis] + index));
    for (let axis = place.length; axis < shape.length; axis += 1) offset *= shape[axis];
    return offset;
  };

  return {
    shape,
    /** The numbers that follow a place given by its first indices. */
    row(...place) {
      const length = shape.slice(place.length).reduce((product, size) => product * size, 1);
      const first = start(...place);
      return Float64Array.from(bytes.subarray(first, first + length), (step) => step / 255);
    },
  };
};

/** One query's row of a pattern whose empty half was left out. */
lab.rowOf = (entries, query) => entries.subarray((query * (query + 1)) / 2, ((query + 1) * (query + 2)) / 2);

/** `.90`, as the studies write shares; `-.05`; `1.00`. */
lab.share = function (value) {
  if (value === null || value === undefined) return "none";
  const text = value.toFixed(2).replace(/^(-?)0\./, "$1.");
  return text === "-.00" ? ".00" : text;
};

/** Any number in at most four digits. */
lab.number = function (value) {
  if (value === null || value === undefined) return "none";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  return Math.abs(value) >= 0.001 ? String(Number(value.toPrecision(3))) : value.toExponential(1);
};

lab.counted = (count, what) => `${count} ${what}${count === 1 ? "" : "s"}`;

lab.mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
