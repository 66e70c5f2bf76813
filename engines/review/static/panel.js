// The side panel: a threshold for each class over its scores, and what they leave. Knows nothing about filters.

import * as api from "./api.js";
import { el, number, plural, svg } from "./dom.js";
import { isRun, keepThresholds, on, setThreshold, state } from "./store.js";

let rows = [];

export function thresholds() {
  const list = el("div", { class: "thresholds" });
  rows = state.about.classes.map((_, label) => row(label));
  list.append(...rows.map((one) => one.node));
  const totals = el("p", { class: "totals", id: "totals" });
  const head = isRun() ? "Thresholds" : "Classes";
  const section = el("section", { "aria-label": head }, el("h2", { text: head }), totals, list);
  on("thresholds", (label) => paint(label));
  on("counts", (counts) => {
    totals.textContent = `${plural(counts.images, "image")} with ${plural(sum(counts.boxes), "label")}`;
    counts.boxes.forEach((count, label) => (rows[label].count.textContent = number(count)));
  });
  rows.forEach((_, label) => paint(label));
  return section;
}

const sum = (values) => values.reduce((total, one) => total + one, 0);

function row(label) {
  const { name, colour } = state.about.classes[label];
  const count = el("span", { class: "count", text: "…" });
  const swatch = el("span", { class: "swatch" });
  swatch.style.background = colour;
  const id = `threshold-${label}`;
  const node = el("div", { class: "threshold" });
  const head = el("div", { class: "threshold-head" }, swatch);
  if (!isRun()) {
    head.append(el("span", { class: "name", text: name }), count);
    node.append(head);
    return { node, count };
  }
  const shown = el("output", { for: id });
  head.append(el("label", { for: id, class: "name", text: name }), count, shown);
  const picture = svg("svg", { viewBox: "5 0 95 24", preserveAspectRatio: "none", "aria-hidden": "true", class: "bars" });
  const slider = el("input", { type: "range", id, min: "0.05", max: "1", step: "0.01" });
  slider.addEventListener("input", () => setThreshold(label, Number(slider.value)));
  slider.addEventListener("change", keepThresholds);
  slider.addEventListener("focus", () => (state.label = label));
  node.append(head, el("div", { class: "scale" }, picture, slider));
  return { node, count, shown, slider, picture, bars: [] };
}

function paint(label) {
  const { shown, slider, bars } = rows[label];
  if (!slider) return;
  const value = state.thresholds[label];
  shown.textContent = value.toFixed(2);
  slider.value = value;
  slider.setAttribute("aria-valuetext", `${state.about.classes[label].name} from ${value.toFixed(2)}`);
  bars.forEach((bar, bin) => bar.classList.toggle("below", bin < Math.round(value * 100)));
}

// Scores as bars of the root of their number: a few sure boxes show beside many weak ones.
export async function histograms() {
  if (!isRun()) return;
  const { counts } = await api.get("histogram");
  counts.forEach((bins, label) => {
    const most = Math.max(1, ...bins);
    const one = rows[label];
    one.bars = bins.map((count, bin) => {
      const height = count ? Math.max(1, 24 * Math.sqrt(count / most)) : 0;
      const bar = svg("rect", { x: bin, y: 24 - height, width: 0.85, height });
      bar.style.fill = state.about.classes[label].colour;
      return bar;
    });
    one.picture.replaceChildren(...one.bars);
    paint(label);
  });
}
