/* Every cell or network as a dot: any measure against any other, one seed or all, names under the pointer, and beside
   the dots of a few networks. */
{
  const { items, means, measures, x, y } = data.points;
  const place = document.getElementById("points");
  const state = { x, y, seed: "" };
  const colors = ["var(--blue)", "#d55e00", "#009e73", "#cc79a7", "#b37a00", "#56b4e9"];
  const [height, left, right, top, bottom] = [340, 64, 16, 14, 46];
  const [mostNamed, line] = [8, 14];
  let width = 0;
  const read = element("output", { class: "read", "data-hint": "Point at a dot to see what it is." });
  const frame = element("div");
  const measure = (name) => measures.find((own) => own.name === name);

  function steps(low, high) {
    const rough = (high - low) / 5;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
    const found = [];
    for (let at = Math.ceil(low / step) * step; at <= high + step / 1e6; at += step) found.push(Number(at.toPrecision(12)));
    return found;
  }
  function axis(name, values, from, to) {
    const { log } = measure(name);
    const seen = values.filter((value) => value !== null);
    let [low, high] = [Math.min(...seen), Math.max(...seen)];
    const ticks = log ? [...new Set(seen)] : null;
    if (log) [low, high] = [low / 1.2, high * 1.2];
    else {
      const room = 0.06 * (high - low) || 0.1 * Math.abs(high) || 1;
      [low, high] = [low - room, high + room];
    }
    const scale = log ? Math.log : (value) => value;
    const at = (value) => from + ((to - from) * (scale(value) - scale(low))) / (scale(high) - scale(low));
    return { at, ticks: ticks || steps(low, high) };
  }
  const drawn = (tag, options, ...children) => element(tag, { svg: true, ...options }, ...children);

  /* Beside each dot where there is room for its name; where there is none, the name is left to the pointer. */
  function nameDots(svg, dots) {
    const taken = dots.map(({ x, y }) => [x - 6, y - 6, x + 6, y + 6]);
    const free = (box) => box[0] > left && box[2] < width && box[1] > 0 && box[3] < height - bottom
      && taken.every((own) => box[2] <= own[0] || box[0] >= own[2] || box[3] <= own[1] || box[1] >= own[3]);
    for (const { name, x, y } of dots) {
      const text = drawn("text", { class: "name", text: name });
      svg.append(text);
      const long = text.getComputedTextLength();
      const starts = [0, -line, line].flatMap((down) => [[x + 8, y + down], [x - 8 - long, y + down]]);
      starts.push([x - long / 2, y - line], [x - long / 2, y + line]);
      const start = starts.find(([from, middle]) => free([from, middle - line / 2, from + long, middle + line / 2]));
      if (!start) { text.remove(); continue; }
      taken.push([start[0], start[1] - line / 2, start[0] + long, start[1] + line / 2]);
      text.setAttribute("x", start[0]);
      text.setAttribute("y", start[1] + 4);
    }
  }
  function draw() {
    const shown = items.filter((item) => (state.seed === "" || String(item.seed) === state.seed)
      && item.values[state.x] !== null && item.values[state.y] !== null);
    if (!shown.length) { frame.replaceChildren("Nothing was measured of these two."); return; }
    const lines = state.x === "kernel" && state.seed === "" ? means.filter((own) => own.measure === state.y) : [];
    const ends = lines.flatMap((line) => line.points.flatMap((point) => point.slice(1)));
    width = Math.max(300, Math.min(660, place.clientWidth)); // letters keep their size
    const across = axis(state.x, shown.map((item) => item.values[state.x]), left, width - right);
    const up = axis(state.y, [...shown.map((item) => item.values[state.y]), ...ends], height - bottom, top);
    const groups = [...new Set(items.map((item) => item.group))];
    const color = (group) => colors[groups.indexOf(group) % colors.length];
    const title = `${measure(state.y).label} against ${measure(state.x).label}`;
    const svg = drawn("svg", { class: "points", viewBox: `0 0 ${width} ${height}`, role: "img" }, drawn("title", { text: title }));
    svg.append(drawn("path", { class: "axis", d: `M${left} ${top}V${height - bottom}H${width - right}` }));
    for (const tick of across.ticks) {
      svg.append(drawn("path", { class: "axis", d: `M${across.at(tick)} ${height - bottom}v4` }));
      svg.append(drawn("text", { x: across.at(tick), y: height - bottom + 18, "text-anchor": "middle", text: rounded(tick, 4) }));
    }
    for (const tick of up.ticks) {
      svg.append(drawn("path", { class: "axis", d: `M${left} ${up.at(tick)}h-4` }));
      svg.append(drawn("text", { x: left - 8, y: up.at(tick) + 4, "text-anchor": "end", text: rounded(tick, 4) }));
    }
    svg.append(drawn("text", { x: (left + width - right) / 2, y: height - 8, "text-anchor": "middle", text: measure(state.x).label }));
    svg.append(drawn("text", { transform: `translate(14 ${(top + height - bottom) / 2}) rotate(-90)`, "text-anchor": "middle", text: measure(state.y).label }));
    for (const line of lines) {
      const points = line.points.filter((point) => point[1] !== null);
      const path = points.map(([at, mean]) => `${across.at(at)} ${up.at(mean)}`).join("L");
      svg.append(drawn("path", { class: "mean", stroke: color(line.group), d: `M${path}` }));
      for (const [at, , low, high] of points)
        if (low !== null) svg.append(drawn("path", { class: "mean", stroke: color(line.group), d: `M${across.at(at)} ${up.at(low)}V${up.at(high)}` }));
    }
    for (const item of shown) {
      const values = `${measure(state.x).label} ${rounded(item.values[state.x], 4)}, ${measure(state.y).label} ${rounded(item.values[state.y], 4)}`;
      const said = `${item.name}: ${values}${item.group ? ` (${item.group})` : ""}`;
      const tell = () => { read.textContent = said; };
      const dot = drawn("circle", { class: "dot", cx: across.at(item.values[state.x]), cy: up.at(item.values[state.y]), r: 5,
        fill: color(item.group), tabindex: 0, "data-name": item.name, onpointerenter: tell, onfocus: tell }, drawn("title", { text: said }));
      const href = item.file && `./${encodeURI(item.file)}`;
      svg.append(href ? drawn("a", { href }, dot) : dot);
    }
    frame.replaceChildren(svg);
    if (!means.length && items.length <= mostNamed)
      nameDots(svg, shown.map(({ name, values }) => ({ name, x: across.at(values[state.x]), y: up.at(values[state.y]) })));
  }
  const choices = measures.map((own) => [own.name, own.label]);
  const choose = (name) => {
    const select = picker(choices, (event) => { state[name] = event.target.value; draw(); }, name);
    select.value = state[name];
    return select;
  };
  const seeds = [...new Set(items.map((item) => item.seed).filter((seed) => seed !== undefined))];
  const controls = element("div", { class: "controls" }, labelled("show", choose("y")), labelled("against", choose("x")));
  if (seeds.length > 1) {
    const options = [["", "all"], ...seeds.map((seed) => [seed, seed])];
    controls.append(labelled("seed", picker(options, (event) => { state.seed = event.target.value; draw(); }, "seed")));
  }
  place.append(controls, frame, read);
  place.hidden = false;
  draw();
  addEventListener("resize", draw);
}
