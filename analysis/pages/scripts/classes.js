/* An evaluation: what the images of a class were taken for. */
{
  const place = document.getElementById("classes");
  const list = element("div", { class: "read" });
  const show = (index) => {
    const own = data.classes[index];
    const all = own.answers.reduce((sum, [, count]) => sum + count, 0);
    const rows = own.answers.slice(0, 10).map(([name, count]) => {
      const bar = element("span", { class: "bar" });
      bar.style.width = `${(12 * count) / all}rem`;
      const right = name === own.name ? " (right)" : "";
      return element("tr", {}, element("td", { text: name + right }), element("td", { text: count }),
        element("td", { class: "text" }, bar));
    });
    list.replaceChildren(element("table", {}, element("tbody", {}, ...rows)));
  };
  const choices = data.classes.map((own, index) => [index, own.shown]);
  const select = picker(choices, (event) => show(event.target.value), "class");
  place.append(element("div", { class: "controls" }, labelled("answers to the images of", select)), list);
  place.hidden = false;
  show(0);
}
