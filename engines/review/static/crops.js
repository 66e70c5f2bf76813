// The boxes of one class by score, each as a crop: what the least sure ones look like. K is a label, X is none.

import * as api from "./api.js";
import { el, newest, picture as showPicture, plural, say } from "./dom.js";
import { inkOn, colour } from "./marks.js";
import { corners, decide, isRun, on, state, tell } from "./store.js";
import { makeCrop } from "./tiles.js";
import { openViewer } from "./viewer.js";
import { VirtualGrid } from "./virtual.js";

const WORDS = { given: "", confirmed: "✓", deleted: "✕", changed: "✎" };

export function cropsView(parent) {
  const until = new AbortController();
  const names = state.about.classes.map((one, label) => el("option", { value: String(label), text: one.name }));
  const which = el("select", { "aria-label": "Class" }, ...names);
  const order = el("select", { "aria-label": "Order" },
    el("option", { value: "up", text: "Nearest above the threshold first" }), el("option", { value: "down", text: "Surest first" }),
    el("option", { value: "below", text: "Nearest below the threshold first" }));
  const shown = el("p", { class: "shown", role: "status" });
  const bar = el("div", { class: "bar" }, shown, which, ...(isRun() ? [order] : []));
  parent.append(bar);
  which.value = String(state.label);
  let query = null;
  const grid = new VirtualGrid(parent, {
    label: "Crops", least: 132, high: (width) => width + 26, make, fill,
    name: (item) => `${state.about.classes[item.label].name} ${item.score.toFixed(2)}, ${item.name}, ${item.state}`,
    load: async (start, count) => (await api.get("crop_window", { query, start, count })).items,
    opened: open,
    failed: (error) => (/no longer kept/.test(error.message) ? ask(true) : tell("trouble", error.message)),
  });

  const asking = newest();
  async function ask(keepPlace = false) {
    const counts = asking();
    const label = Number(which.value);
    const least = isRun() ? state.thresholds[label] : 0;
    const range = order.value === "below" ? { low: 0, high: Math.max(0, least - 1e-4) } : { low: least, high: 1 };
    try {
      const found = await api.post("crops", { label, ...range, rising: order.value === "up" });
      if (!counts()) return;
      query = found.query;
      shown.textContent = plural(found.total, "box", "boxes");
      grid.show(found.total, keepPlace);
    } catch (error) {
      tell("trouble", error.message);
    }
  }

  function open() {
    const item = grid.current;
    if (item)
      openViewer({
        row: item.row, box: item.box,
        step: (by) => grid.step(by),
        closed: () => grid.node.focus({ preventScroll: true }),
      });
  }

  function answer(item, keep) {
    if (item.state === "deleted" || item.state === "changed") {
      say(`This box was ${item.state} already; U takes that back.`);
      return;
    }
    const was = { box: corners(item.box), label: state.about.classes[item.label].name };
    decide({ do: keep ? "confirm" : "delete", images: [item.name], was });
    const state_ = keep ? "confirmed" : "deleted";
    grid.renew([{ ...item, state: state_ }], (one, other) => one.row === other.row && one.place === other.place);
    say(`${state_}, ${item.name}`);
    grid.move(grid.active + 1);
  }

  grid.node.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const key = event.key.toLowerCase();
    if (grid.key(event)) event.preventDefault();
    else if ((key === "k" || key === "x") && grid.current) {
      event.preventDefault();
      answer(grid.current, key === "k");
    } else if ((key === "enter" || key === " ") && grid.current) {
      event.preventDefault();
      open();
    }
  });
  which.addEventListener("change", () => {
    state.label = Number(which.value);
    ask();
  });
  order.addEventListener("change", () => ask());
  on("settled", () => ask(), until.signal);
  on("more", () => ask(true), until.signal);
  on("undone", () => ask(true), until.signal);
  ask();
  return { close: () => (until.abort(), grid.close(), bar.remove()) };
}

function make(node) {
  const score = el("span", { class: "score" });
  const name = el("span", { class: "name" });
  return { ...makeCrop(node, el("div", { class: "foot" }, score, name)), score, name };
}

function fill(tile, item, place, { moving }) {
  const { picture, edge, stamp, score, name } = tile.parts;
  showPicture(picture, api.crop(item.row, item.box), moving);
  const [wide, high] = [item.box[2] - item.box[0], item.box[3] - item.box[1]];
  const half = Math.max(Math.max(wide, high) * 0.85, 12); // as the server cuts them
  edge.style.inset = `${50 - (50 * high) / (2 * half)}% ${50 - (50 * wide) / (2 * half)}%`;
  edge.style.borderColor = colour(item.label);
  score.textContent = isRun() ? item.score.toFixed(2) : state.about.classes[item.label].name;
  score.style.background = colour(item.label);
  score.style.color = inkOn(colour(item.label));
  name.textContent = item.name.replace(/^0+(?=\d)/, "").replace(/\.\w+$/, "");
  stamp.textContent = item.verdict === 2 ? "✕" : WORDS[item.state];
  tile.node.classList.toggle("kept", item.state === "confirmed");
  tile.node.classList.toggle("rejected", item.state === "deleted");
  tile.node.classList.toggle("edited", item.state === "changed");
}
