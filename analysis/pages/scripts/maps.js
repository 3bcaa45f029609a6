/* Receptive fields: the square of any share of the gradient, and what is under the pointer. */
const maps = data.maps.map((map) => ({
  ...map,
  areas: doubles(map.areas),
  raw: map.raw && doubles(map.raw),
  log: map.log && doubles(map.log),
}));

/* As `analysis.receptive_field.measures.area_ratio`, operation by operation. */
replknet.firstAbove = (shares, threshold) => {
  const found = shares.findIndex((share) => share > threshold);
  return found < 0 ? shares.length - 1 : found;
};
replknet.areaRatio = (map, threshold, scale) => {
  const shares = map[scale];
  if (!shares || Number.isNaN(shares[shares.length - 1])) return NaN;
  if (map.steps || scale === "log") return map.areas[replknet.firstAbove(shares, threshold)];
  const last = shares.findIndex((share) => share >= threshold);
  if (last < 0) return 1;
  const [area, share] = last ? [map.areas[last - 1], shares[last - 1]] : [0, 0];
  return area + ((map.areas[last] - area) * (threshold - share)) / (shares[last] - share);
};
replknet.square = (map, threshold, scale) => {
  const area = replknet.areaRatio(map, threshold, scale);
  if (Number.isNaN(area)) return null;
  const sides = [map.height, map.width];
  const inside = (half) => {
    const low = map.center.map((middle) => Math.max(middle - half, -0.5));
    const high = map.center.map((middle, axis) => Math.min(middle + half, sides[axis] - 0.5));
    return [low[0], low[1], high[0] - low[0], high[1] - low[1]];
  };
  if (map.steps || scale === "log") return inside((replknet.firstAbove(map[scale], threshold) + 1) / 2);
  let [low, high] = [0, Math.max(...sides)];
  for (let step = 0; step < 60; step += 1) {
    const half = (low + high) / 2;
    const [, , height, width] = inside(half);
    if (height * width < area * sides[0] * sides[1]) low = half;
    else high = half;
  }
  return inside(high);
};
replknet.maps = maps;

const state = { threshold: 0.5, scale: "raw", chosen: {} };
const figures = [...document.querySelectorAll("figure.map")];

function decoded(map) {
  if (map.values) return map.values;
  const picture = new Image();
  picture.src = map.fine;
  map.values = picture.decode().then(() => {
    const canvas = element("canvas", { width: picture.width, height: picture.height });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(picture, 0, 0);
    const pixels = context.getImageData(0, 0, picture.width, picture.height).data;
    const rows = picture.height / 2;
    const at = (row, column) => pixels[4 * (row * picture.width + column)];
    return (row, column) => 256 * at(row, column) + at(row + rows, column);
  });
  return map.values;
}

/* Relative to the maximum; 0 for what is below the range, and for nothing at all. */
replknet.value = async (map, row, column) => {
  const number = (await decoded(map))(Math.floor(row / map.factor), Math.floor(column / map.factor));
  return number === 0 ? 0 : 10 ** ((map.decades * (number - 1)) / 65534 - map.decades);
};
/* The share of the gradient inside the square that reaches to this pixel. */
replknet.contribution = (map, row, column) => {
  const ring = 2 * Math.max(Math.abs(row - map.center[0]), Math.abs(column - map.center[1]));
  return map.raw ? map.raw[Math.trunc(ring)] : NaN;
};

function redraw() {
  for (const figure of figures) {
    const map = maps[figure.dataset.map];
    figure.hidden = Object.entries(state.chosen).some(([name, value]) => value !== "" && String(map[name]) !== value);
    if (!map.raw) continue;
    const texts = [];
    [state.threshold, 0.99].forEach((threshold, index) => {
      const square = replknet.square(map, threshold, state.scale);
      if (!square) return;
      const [top, left, height, width] = square;
      for (const rect of [...figure.querySelectorAll("rect")].slice(2 * index, 2 * index + 2))
        for (const [name, value] of Object.entries({ x: left + 0.5, y: top + 0.5, width, height }))
          rect.setAttribute(name, value);
      const area = (100 * replknet.areaRatio(map, threshold, state.scale)).toFixed(2);
      texts.push(`${rounded(100 * threshold, 4)} % in ${area} %` + (index ? "" : ` (${rounded(Math.max(height, width), 4)} px)`));
    });
    const words = `${texts.join(", ")} of the area${state.scale === "log" ? ", log scale" : ""}`;
    const caption = texts.length ? words : "undefined: no gradient";
    figure.querySelector("figcaption").textContent = caption;
    figure.querySelector("svg title").textContent = caption;
  }
}

async function hover(event, map, output) {
  const box = event.currentTarget.getBoundingClientRect();
  const shown = event.currentTarget.viewBox.baseVal;
  const at = (part, side, last) => Math.min(last, Math.max(0, Math.floor(part * side)));
  const row = at((event.clientY - box.top) / box.height, shown.height, map.height - 1);
  const column = at((event.clientX - box.left) / box.width, shown.width, map.width - 1);
  const value = await replknet.value(map, row, column);
  const size = value ? rounded(value) : `below 1e-${map.decades}`;
  const mean = map.factor > 1 ? ` (mean of ${map.factor} x ${map.factor} pixels)` : "";
  const share = map.raw ? `; the square to here holds ${(100 * replknet.contribution(map, row, column)).toFixed(1)} %` : "";
  output.textContent = `x ${column}, y ${row}: ${size} of the maximum${mean}${share}`;
}

const controls = element("div", { class: "controls", id: "map-controls" });
if (maps.some((map) => map.raw)) {
  const number = element("input", { type: "number", min: 0.1, max: 99.9, step: 0.1, value: 50, name: "percent" });
  const slider = element("input", { type: "range", min: 0.5, max: 99.5, step: 0.5, value: 50, name: "threshold" });
  const follow = (other) => (event) => {
    const value = Number(event.target.value);
    if (!(value > 0 && value < 100)) return;
    other.value = value;
    state.threshold = value / 100;
    redraw();
  };
  slider.addEventListener("input", follow(number));
  number.addEventListener("input", follow(slider));
  const scale = (event) => { state.scale = event.target.value; redraw(); };
  const scales = [["raw", "raw map"], ["log", "log10(map + 1), the official script's"]];
  controls.append(labelled("share of the gradient (%)", slider), number, labelled("of the", picker(scales, scale, "scale")));
}
for (const [name, text] of [["model", "model"], ["layer", "layer"], ["variant", "variant"], ["kernel", "kernel"], ["seed", "seed"], ["state", "weights"]]) {
  const own = [...new Set(maps.map((map) => map[name]).filter((value) => value !== undefined).map(String))];
  if (own.length < 2) continue;
  const first = data.first?.[name] === undefined ? "" : String(data.first[name]);
  const choices = [["", "all"], ...own.map((value) => [value, value])];
  const select = picker(choices, (event) => { state.chosen[name] = event.target.value; redraw(); }, name);
  select.value = state.chosen[name] = first;
  controls.append(labelled(text, select));
}
if (figures.length) {
  document.querySelector(".maps").before(controls);
  for (const figure of figures) {
    const map = maps[figure.dataset.map];
    const output = figure.querySelector("output");
    output.hidden = false;
    output.textContent = "\u00a0";
    figure.querySelector("svg").addEventListener("pointermove", (event) => hover(event, map, output));
  }
  redraw();
}
