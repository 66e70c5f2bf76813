// The filter: which images are shown, in which order. Knows how its form reads, and nothing about what is shown.

import { el } from "./dom.js";
import { isRun, state, tell } from "./store.js";

const ORDERS = [
  ["order", "As painted"], ["unsure", "Least sure first"], ["sure", "Surest first"], ["many", "Most boxes first"],
  ["few", "Fewest boxes first"], ["shuffled", "Shuffled"],
];
const STATUS = [
  ["all", "All"], ["undecided", "Undecided"], ["kept", "Kept"], ["rejected", "Rejected"], ["edited", "With changed boxes"],
];
// field, what is asked, of runs alone, kind
const RANGES = [
  ["least", "most", "Labels", false, { min: 0, step: 1 }],
  ["smallest", "largest", "Size, pixels", false, { min: 0, step: 1 }],
  ["lowest", "highest", "Score", true, { min: 0, max: 1, step: 0.01 }],
  ["weakest", "strongest", "Strength", true, { min: 0, max: 1, step: 0.01 }],
];

export function filters() {
  const form = el("form", { class: "filters", "aria-label": "Filter" });
  const orders = isRun() ? ORDERS : ORDERS.filter(([key]) => !["unsure", "sure"].includes(key));
  orders[0][1] = isRun() ? "As painted" : "As in the dataset";
  form.append(
    choice("order", "Order", orders),
    choice("status", "Decision", STATUS),
    choice("label", "Class", [["", "Any"], ...state.about.classes.map((one, label) => [label, one.name])]),
    ...RANGES.filter(([, , , runs]) => isRun() || !runs).map((one) => range(...one)),
    words("prompt", isRun() ? "Prompt" : "Caption"),
  );
  if (isRun()) form.append(words("reference", "Reference"));
  const clear = el("button", { type: "button", class: "plain", text: "Clear the filter" });
  clear.addEventListener("click", () => {
    form.reset();
    changed(form);
  });
  form.append(clear);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("change", () => changed(form));
  let wait = 0;
  form.addEventListener("input", (event) => {
    if (event.target.matches("select")) return;
    clearTimeout(wait);
    wait = setTimeout(() => changed(form), 350);
  });
  return el("section", { "aria-label": "Filter" }, el("h2", { text: "Filter" }), form);
}

function field(label, ...inputs) {
  return el("label", { class: "field" }, el("span", { text: label }), ...inputs);
}

function choice(name, label, entries) {
  const options = entries.map(([value, text]) => el("option", { value: String(value), text }));
  return field(label, el("select", { name }, ...options));
}

function range(low, high, label, _, limits) {
  const input = (name, what) =>
    el("input", { type: "number", name, placeholder: what, "aria-label": `${label}, ${what}`, ...limits });
  return el("div", { class: "field", role: "group", "aria-label": label }, el("span", { text: label }),
    el("span", { class: "pair" }, input(low, "from"), input(high, "to")));
}

function words(name, label) {
  return field(`${label} holds`, el("input", { type: "text", name, autocomplete: "off", spellcheck: "false" }));
}

function changed(form) {
  const found = {};
  for (const [name, value] of new FormData(form)) {
    if (value === "" || value === "all") continue;
    found[name] = ["order", "status", "prompt", "reference"].includes(name) ? value : Number(value);
  }
  if (found.order === "order") delete found.order;
  if (JSON.stringify(found) === JSON.stringify(state.filter)) return;
  state.filter = found;
  if (found.label !== undefined) state.label = found.label;
  tell("filter");
}
