/* Stimuli with everybody's answers: a click on a category or a pair shows its images. */
{
  const { words, stimuli, shapes, textures, observers, pictures } = data;
  const place = document.getElementById("answers");
  const people = observers.filter((own) => own.person);
  const groups = observers.map((own) => ({ name: own.name, members: [own] }));
  if (people.length > 1) groups.push({ name: `all ${people.length} people`, members: people });
  const state = { group: groups[0], pair: null, sort: "name" };
  const kind = (own, index) => {
    if (own.answers[index] === shapes[index]) return "shape";
    return own.answers[index] === textures[index] ? "texture" : "neither";
  };
  const all = stimuli.map((_, index) => index);
  const chosen = (pair) => all.filter((index) =>
    (pair.shape === null || shapes[index] === pair.shape) && (pair.texture === null || textures[index] === pair.texture));
  const counts = (indices, members) => {
    const found = { shape: 0, texture: 0, neither: 0 };
    for (const own of members) for (const index of indices) found[kind(own, index)] += 1;
    return found;
  };
  const word = (number) => words[number] || "none";
  const title = (pair) => [pair.shape === null ? "" : `shape ${word(pair.shape)}`,
    pair.texture === null ? "" : `texture ${word(pair.texture)}`].filter(Boolean).join(", ");
  const describe = (pair) => {
    const indices = chosen(pair);
    const found = counts(indices, state.group.members);
    const same = pair.shape === pair.texture ? "right" : "shape";
    const texture = same === "right" ? "" : `texture ${found.texture}, `;
    return `${title(pair)}: ${indices.length} image${indices.length === 1 ? "" : "s"}; ${state.group.name}: ${same} ${found.shape}, ${texture}neither ${found.neither}`;
  };
  replknet.counts = (shape, texture) => {
    const number = (name) => (name === null ? null : words.indexOf(name));
    return counts(chosen({ shape: number(shape), texture: number(texture) }), state.group.members);
  };

  const read = element("output", { class: "read", "data-hint": "Click a cell, a shape or a texture to see its images." });
  const matrix = element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Pairs, scrolls" });
  const list = element("ul", { class: "stimuli" });
  const button = (pair, text) => element("button", {
    type: "button", text, "aria-label": title(pair),
    "aria-pressed": String(state.pair !== null && state.pair.shape === pair.shape && state.pair.texture === pair.texture),
    onclick: () => { state.pair = pair; draw(); show(); },
    onpointerenter: () => { read.textContent = describe(pair); },
    onfocus: () => { read.textContent = describe(pair); },
  });
  const distinct = (values) => [...new Set(values)].sort((a, b) => a - b);
  function draw() {
    const columns = distinct(textures);
    const head = element("tr", {}, element("th", { text: "shape \\ texture" }),
      ...columns.map((texture) => element("th", { scope: "col" }, button({ shape: null, texture }, word(texture)))));
    const rows = distinct(shapes).map((shape) => {
      const cells = columns.map((texture) => {
        const indices = chosen({ shape, texture });
        const cell = element("td");
        if (!indices.length) return cell;
        const found = counts(indices, state.group.members);
        const decided = found.shape + found.texture;
        const part = shape === texture ? null : decided ? found.shape / decided : null;
        cell.append(button({ shape, texture }, part === null ? (shape === texture ? "=" : "-") : part.toFixed(1).replace("0.", ".")));
        if (part !== null) cell.style.background = `color-mix(in srgb, color-mix(in srgb, var(--blue) ${100 * part}%, var(--orange)) 45%, var(--paper))`;
        return cell;
      });
      return element("tr", {}, element("th", { scope: "row" }, button({ shape, texture: null }, word(shape))), ...cells);
    });
    matrix.replaceChildren(element("table", { class: "pairs" }, element("thead", {}, head), element("tbody", {}, ...rows)));
  }
  const orders = {
    name: null,
    "most shape answers": (index) => -counts([index], observers).shape,
    "most texture answers": (index) => -counts([index], observers).texture,
    "most different answers": (index) => -new Set(observers.map((own) => own.answers[index])).size,
  };
  function show() {
    if (state.pair === null) return;
    const key = orders[state.sort];
    const indices = chosen(state.pair);
    if (key) indices.sort((a, b) => key(a) - key(b) || a - b);
    list.replaceChildren(...indices.map((index) => {
      const said = element("div", {}, element("b", { text: stimuli[index] }));
      for (const own of observers.filter((one) => !one.person)) {
        const answer = element("span", { class: kind(own, index), text: word(own.answers[index]) });
        said.append(element("div", { text: `${own.name}: ` }, answer));
      }
      const given = new Map();
      for (const own of people) given.set(own.answers[index], (given.get(own.answers[index]) || 0) + 1);
      if (people.length) {
        const line = element("div", { text: "people: " });
        [...given].sort((a, b) => b[1] - a[1]).forEach(([answer, count], position) => {
          const of = kind({ answers: { [index]: answer } }, index);
          line.append(position ? ", " : "", element("span", { class: of, text: `${word(answer)} ${count}` }));
        });
        said.append(line);
      }
      const picture = pictures.length
        ? [element("img", { src: `data:image/jpeg;base64,${pictures[index]}`, alt: stimuli[index], width: 64, height: 64 })] : [];
      return element("li", {}, ...picture, said);
    }));
    read.textContent = describe(state.pair);
    order.hidden = false;
  }
  const group = picker(groups.map((own, index) => [index, own.name]), (event) => {
    state.group = groups[event.target.value];
    draw();
    if (state.pair) read.textContent = describe(state.pair);
  }, "observer");
  const sort = picker(Object.keys(orders).map((name) => [name, name]), (event) => { state.sort = event.target.value; show(); }, "sort");
  const order = labelled("images by", sort);
  order.hidden = true;
  place.append(
    element("div", { class: "controls" }, labelled("answers of", group), order,
      element("span", {}, element("span", { class: "shape", text: "shape" }), " or ", element("span", { class: "texture", text: "texture" }))),
    matrix, read, list);
  place.hidden = false;
  draw();
}
