"use strict";
/* What the other scripts share. All text goes in by textContent: names come from users. */
const data = JSON.parse(document.getElementById("page-data").textContent);
const replknet = {};

function element(tag, options = {}, ...children) {
  const { svg, ...rest } = options;
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(rest)) {
    if (name === "text") made.textContent = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

function labelled(text, control) {
  return element("label", { text: `${text} ` }, control);
}

function picker(choices, changed, name) {
  const options = choices.map(([value, text]) => element("option", { value, text }));
  return element("select", { onchange: changed, name }, ...options);
}

function doubles(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  return new Float64Array(bytes.buffer);
}

function rounded(value, digits = 3) {
  return value === null || Number.isNaN(value) ? "-" : String(Number(value.toPrecision(digits)));
}
