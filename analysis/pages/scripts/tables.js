/* Tables: a click on a heading sorts, a list chooses the columns. */
for (const table of document.querySelectorAll("table.data")) {
  const headings = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const key = (row, column) => {
    const text = row.cells[column].textContent.trim();
    const number = parseFloat(text.replace(/^\+/, ""));
    return Number.isNaN(number) ? text : number;
  };
  const sort = (column) => {
    const down = headings[column].getAttribute("aria-sort") === "ascending";
    headings.forEach((heading) => heading.removeAttribute("aria-sort"));
    headings[column].setAttribute("aria-sort", down ? "descending" : "ascending");
    const order = (a, b) => {
      const [x, y] = [key(a, column), key(b, column)];
      if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1; // words after numbers, both ways
      const found = typeof x === "number" ? x - y : x.localeCompare(y, "en");
      return down ? -found : found;
    };
    body.append(...[...body.rows].sort(order));
  };
  headings.forEach((heading, column) => {
    const button = element("button", { type: "button", text: heading.textContent, onclick: () => sort(column) });
    heading.replaceChildren(button);
  });
  if (headings.length > 5) {
    const show = (column, shown) => {
      for (const row of [table.tHead.rows[0], ...body.rows]) row.cells[column].hidden = !shown;
    };
    const boxes = headings.slice(1).map((heading, index) => {
      const changed = (event) => show(index + 1, event.target.checked);
      const box = element("input", { type: "checkbox", checked: true, onchange: changed });
      return element("label", {}, box, ` ${heading.textContent}`);
    });
    table.parentElement.before(element("details", { class: "columns" }, element("summary", { text: "Columns" }), ...boxes));
  }
}
