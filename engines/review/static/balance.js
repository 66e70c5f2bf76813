// How often each class comes, beside how often the adapter saw it, and what to paint for those that are short.

import * as api from "./api.js";
import { command, el, newest, number, plural } from "./dom.js";
import { isRun, on, state, tell } from "./store.js";

export function balanceView(parent) {
  const until = new AbortController();
  const sheet = el("div", { class: "reading", tabindex: "0", "aria-label": "Class balance", role: "region" });
  parent.append(sheet);

  const asking = newest();
  async function show() {
    const counts = asking();
    try {
      const found = await api.post("balance", { thresholds: state.thresholds });
      if (counts()) draw(sheet, found);
    } catch (error) {
      tell("trouble", error.message);
    }
  }

  for (const name of ["counts", "settled", "decided", "more"]) on(name, show, until.signal);
  show();
  return { close: () => (until.abort(), sheet.remove()) };
}

function draw(sheet, found) {
  const known = found.classes.some((one) => one.expected);
  const most = Math.max(1e-9, ...found.classes.map((one) => Math.max(one.rate, one.expected || 0)));
  const head = ["Class", "Labels", "An image", ...(known ? ["In training", ""] : [""])];
  const rows = found.classes.map((one, label) => {
    const bar = el("span", { class: "rate" });
    bar.style.width = `${(100 * one.rate) / most}%`;
    bar.style.background = state.about.classes[label].colour;
    const track = el("span", { class: "track", "aria-hidden": "true" }, bar);
    if (one.expected) {
      const mark = el("span", { class: "aim" });
      mark.style.left = `${(100 * one.expected) / most}%`;
      track.append(mark);
    }
    const cells = [one.name, number(one.boxes), one.rate.toFixed(2)];
    if (known) cells.push(one.expected ? one.expected.toFixed(2) : "–");
    return el("tr", {}, el("th", { scope: "row", text: cells[0] }), ...cells.slice(1).map((text) => el("td", { text })),
      el("td", { class: "wide" }, track));
  });
  const table = el("table", {}, el("thead", {}, el("tr", {}, ...head.map((text) => el("th", { scope: "col", text: text || "Compared" })))),
    el("tbody", {}, ...rows));
  const short = found.classes.filter((one) => one.expected && one.rate < 0.8 * one.expected).map((one) => one.name);
  const parts = [el("h2", { text: `Labels in ${plural(found.images, "image")}` }), table];
  if (known && !short.length) parts.push(el("p", { text: "No class is much rarer than the annotations that the adapter learned from." }));
  if (short.length)
    parts.push(el("p", { text: `Rarer than in training: ${short.join(", ")}. This paints images that show such classes more often:` }));
  if (found.command) parts.push(command(found.command));
  if (isRun() && !known) parts.push(el("p", { class: "quiet", text: "This run does not say how frequent its classes were in training." }));
  sheet.replaceChildren(...parts);
}
