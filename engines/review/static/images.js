// A grid of images, for every view that shows some: keys, decisions, and what changes under it.

import * as api from "./api.js";
import { el, newest, number, plural, say } from "./dom.js";
import { isRun, on, state, tell, undo, verdict, verdictAll } from "./store.js";
import { fillTile, makeTile, tileHeight, tileName } from "./tiles.js";
import { openViewer } from "./viewer.js";
import { VirtualGrid } from "./virtual.js";

// find() -> {query, total}, or rows with what their tiles say: which images are shown.
export class ImageGrid {
  constructor(parent, { label, find, bulk = true, settles = true, dress = (item) => item }) {
    Object.assign(this, { find, dress, query: null, until: new AbortController(), asking: newest() });
    this.bar = el("div", { class: "bar" });
    this.shown = el("p", { class: "shown", role: "status" });
    this.bar.append(this.shown);
    parent.append(this.bar);
    if (bulk) this.bar.append(this.whole(true), this.whole(false));
    const { signal } = this.until;
    this.grid = new VirtualGrid(parent, {
      label, least: innerWidth < 500 ? 150 : 210, high: tileHeight(state.aspect || 0.75), make: makeTile, fill: fillTile, name: tileName,
      load: async (start, count) => {
        const { items } = await api.get("window", { query: this.query, start, count });
        return items.map((item, place) => this.dress(item, start + place));
      },
      opened: () => this.open(),
      failed: (error) => (/no longer kept/.test(error.message) ? this.ask(true) : tell("trouble", error.message)),
      arrived: () => this.aspect(),
    });
    this.grid.node.addEventListener("keydown", (event) => this.key(event));
    on("thresholds", () => requestAnimationFrame(() => this.grid.redraw()), signal);
    if (settles) on("settled", () => this.ask(true), signal);
    on("decided", ({ items }) => this.grid.renew(items, (one, other) => one.row === other.row), signal);
  }

  close() {
    this.until.abort();
    this.grid.close();
    this.bar.remove();
  }

  async ask(keepPlace = false) {
    const counts = this.asking();
    try {
      const { query, total } = await this.find();
      if (!counts()) return;
      this.query = query;
      this.shown.textContent = plural(total, "image");
      this.grid.show(total, keepPlace);
    } catch (error) {
      tell("trouble", error.message);
    }
  }

  // Tiles take the shape of the first picture.
  aspect() {
    const first = this.grid.item(0);
    if (state.aspect || !first) return;
    state.aspect = Math.min(1.4, Math.max(0.5, first.height / first.width));
    this.grid.options.high = tileHeight(state.aspect);
    this.grid.resized();
  }

  whole(keep) {
    const text = keep ? "Keep all shown" : "Reject all shown";
    const button = el("button", { class: "plain", text });
    button.addEventListener("click", async () => {
      if (this.grid.total > 1 && !confirm(`${text}: ${number(this.grid.total)} images? Undo takes it back.`)) return;
      const answer = await verdictAll(this.query, keep);
      if (answer) {
        say(`${plural(answer.changed, "image")} ${keep ? "kept" : "rejected"}`);
        this.ask(true);
      }
    });
    return button;
  }

  async open() {
    if (!this.grid.total) return;
    const item = this.grid.current || (await this.arrival(this.grid.active));
    openViewer({
      row: item.row,
      step: async (by) => {
        const place = this.grid.active + by;
        if (place < 0 || place >= this.grid.total) return null;
        this.grid.move(place, false);
        const item = this.grid.current || (await this.arrival(place));
        return item ? item.row : null;
      },
      closed: () => this.grid.node.focus({ preventScroll: true }),
    });
  }

  // An item that is not here yet: keys may be faster than the server.
  async arrival(place) {
    const { items } = await api.get("window", { query: this.query, start: place, count: 1 });
    return items[0];
  }

  async judge(keep) {
    const place = this.grid.active;
    const known = this.grid.current;
    if (!known || known.shown) this.grid.move(place + 1);
    const item = known || (await this.arrival(place));
    if (!item.shown) {
      say("This image was never written: it cannot be kept.");
      return;
    }
    verdict(item, keep);
    say(`${item.name} ${keep ? "kept" : "rejected"}`);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const key = event.key.toLowerCase();
    if (this.grid.key(event)) event.preventDefault();
    else if ((key === "k" || key === "x") && this.grid.total) {
      event.preventDefault();
      this.judge(key === "k");
    } else if (key === "enter" || key === " ") {
      event.preventDefault();
      this.open();
    }
  }
}

export const findByFilter = () => api.post("query", { filter: state.filter, thresholds: state.thresholds });

// The first view: everything that the filter shows.
export function imagesView(parent) {
  const view = new ImageGrid(parent, { label: "Images", find: findByFilter });
  on("filter", () => view.ask(), view.until.signal);
  on("more", () => view.ask(true), view.until.signal);
  view.ask();
  return view;
}

// What is not in the dataset, reason by reason.
export function leftOutView(parent) {
  const buttons = el("div", { class: "reasons", role: "group", "aria-label": "Reasons" });
  parent.append(buttons);
  let reason = null;
  const find = () => api.post("query", { filter: { reason }, thresholds: state.thresholds });
  const view = new ImageGrid(parent, { label: "Images that are left out", find });
  const words = {
    "no box": "No label", doubtful: "Doubtful", unreadable: "Unreadable reference", repeat: "Nearly repeats another",
    beyond: "Beyond the count", rejected: "Rejected in review",
  };
  async function count() {
    const { reasons, inside } = await api.post("reasons", { thresholds: state.thresholds });
    const there = Object.entries(reasons).filter(([, images]) => images);
    const note = `${plural(inside, "image")} ${inside === 1 ? "is" : "are"} in the dataset`;
    const made = there.map(([name, images]) => {
      const button = el("button", { class: "chip", "aria-pressed": name === reason, text: `${words[name]} ` },
        el("span", { class: "count", text: number(images) }));
      button.addEventListener("click", () => {
        reason = name;
        count();
        view.ask();
      });
      return button;
    });
    buttons.replaceChildren(...made, el("p", { class: "quiet", text: there.length ? note : `${note}, and none is left out.` }));
    if (!reason && there.length) {
      reason = there[0][0];
      count();
      view.ask();
    }
  }
  on("decided", count, view.until.signal);
  on("settled", count, view.until.signal);
  count();
  return { close: () => (view.close(), buttons.remove()), undo, runs: isRun };
}
