// A grid of any number of tiles, of which only those on the screen exist. Moves by keys, asks for its items by pages.
// Knows nothing about what a tile shows.
//
// A browser's scroll area ends at some ten million pixels, and a million images need more. So the area is CAP high at
// most, and what lies at its top is moved on as one scrolls: near moves are pixel for pixel, a drag of the scroll bar
// goes to that share of the whole.

import { el } from "./dom.js";

const CAP = 6_000_000;
const PAGE = 60;
const KEPT_PAGES = 40;
const FAST = 4; // pixels a millisecond
const BUDGET = 10; // milliseconds of a frame that tiles may be filled in

export class VirtualGrid {
  // options: label (of the whole), least (pixels of a tile's width), high(width) -> its height, load(start, count) ->
  // items, make() -> tile, fill(tile, item, place, {width, height}), name(item, place) -> what is read out
  constructor(parent, options) {
    Object.assign(this, { options, total: 0, active: 0, top: 0, offset: 0, pages: new Map(), loading: new Map() });
    this.tiles = new Map(); // by place
    this.spare = [];
    this.sheet = el("div", { class: "sheet", role: "presentation" });
    this.node = el("div", { class: "grid", role: "listbox", tabindex: "0", "aria-label": options.label }, this.sheet);
    this.node.addEventListener("scroll", () => this.scrolled(), { passive: true });
    this.node.addEventListener("click", (event) => this.clicked(event));
    this.node.addEventListener("dblclick", (event) => this.clicked(event, true));
    this.watch = new ResizeObserver(() => this.resized());
    this.epoch = 0;
    parent.append(this.node);
    this.watch.observe(this.node);
  }

  close() {
    this.watch.disconnect();
    this.node.remove();
  }

  // Show another result, from its beginning or from the same place.
  show(total, keepPlace = false) {
    this.epoch += 1;
    this.total = total;
    this.pages.clear();
    this.loading.clear();
    if (!keepPlace) {
      this.active = 0;
      this.offset = 0;
      this.node.scrollTop = 0;
    }
    this.active = Math.max(0, Math.min(this.active, total - 1));
    for (const tile of this.tiles.values()) tile.item = undefined;
    this.resized();
  }

  // Items that look different now; `same` says whether one is another's newer look.
  renew(items, same) {
    for (const page of this.pages.values())
      for (const [place, old] of page.entries()) {
        const fresh = items.find((one) => same(old, one));
        if (fresh) page[place] = { ...old, ...fresh };
      }
    this.loading.clear(); // what is on its way may be older than this: it is asked for again
    this.redraw();
  }

  redraw() {
    for (const tile of this.tiles.values()) tile.item = undefined;
    this.paint();
  }

  item(place) {
    const page = this.pages.get(Math.floor(place / PAGE));
    return page && page[place % PAGE];
  }

  get current() {
    return this.item(this.active);
  }

  get columns() {
    return this.layout.columns;
  }

  measure() {
    const gap = 10;
    const style = getComputedStyle(this.node);
    const inside = this.node.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
    const columns = Math.max(1, Math.floor((inside + gap) / (Math.min(this.options.least, inside) + gap)));
    const width = Math.floor((inside - gap * (columns - 1)) / columns);
    const height = Math.round(this.options.high(width));
    const rows = Math.ceil(this.total / columns);
    const tall = rows * (height + gap);
    this.layout = { gap, columns, width, height, step: height + gap, tall, area: Math.min(tall, CAP) };
  }

  resized() {
    if (!this.node.clientWidth) return;
    const before = this.layout && this.layout.columns;
    this.measure();
    this.sheet.style.height = `${this.layout.area}px`;
    for (const tile of this.tiles.values()) tile.item = undefined;
    if (before && before !== this.layout.columns) this.reveal(this.active);
    this.paint();
  }

  // Pixels of the whole that are above the screen.
  get above() {
    return this.node.scrollTop + this.offset;
  }

  scrolled() {
    const { tall, area } = this.layout;
    const top = this.node.scrollTop;
    const room = this.node.clientHeight;
    this.hurry(Math.abs(top - this.top));
    if (tall > area && Math.abs(top - this.top) > 2 * room) {
      this.offset = Math.round((top / Math.max(1, area - room)) * (tall - room)) - top;
    } else if (tall > area && (top < area * 0.02 || top > area * 0.98 - room)) {
      this.place(this.above); // near an end of the area: take it to where it stands for the whole
    }
    this.top = this.node.scrollTop;
    this.paint();
  }

  // While tiles fly past no picture is asked for: the server would make thousands that nobody sees.
  hurry(far) {
    const now = performance.now();
    this.moving = far / Math.max(1, now - (this.when || 0)) > FAST;
    this.when = now;
    clearTimeout(this.settling);
    if (this.moving)
      this.settling = setTimeout(() => {
        this.moving = false;
        this.redraw();
      }, 120);
  }

  // Scroll so that the whole's pixel `above` is at the top.
  place(above) {
    const { tall, area } = this.layout;
    const room = this.node.clientHeight;
    const wanted = Math.max(0, Math.min(above, tall - room));
    const top = tall > area ? Math.round((wanted / Math.max(1, tall - room)) * (area - room)) : wanted;
    this.offset = wanted - top;
    this.node.scrollTop = top;
    this.top = this.node.scrollTop;
    this.offset = wanted - this.top;
  }

  reveal(place) {
    if (!this.layout) return;
    const { columns, step } = this.layout;
    const y = Math.floor(place / columns) * step;
    const room = this.node.clientHeight;
    const pad = 12;
    if (y < this.above) this.place(y - pad);
    else if (y + step > this.above + room) this.place(y + step - room + pad);
  }

  // The row of the item so many places on, which becomes the active one; null beyond an end. For the viewer.
  async step(by) {
    const place = this.active + by;
    if (place < 0 || place >= this.total) return null;
    this.move(place, false);
    return this.current ? this.current.row : null;
  }

  move(place, focus = true) {
    if (!this.total) return;
    this.active = Math.max(0, Math.min(place, this.total - 1));
    this.reveal(this.active);
    this.paint();
    if (focus) this.node.focus({ preventScroll: true });
    this.options.moved?.(this.current, this.active);
  }

  key(event) {
    const { columns, step } = this.layout;
    const rows = Math.max(1, Math.floor(this.node.clientHeight / step));
    const moves = {
      ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, PageDown: rows * columns,
      PageUp: -rows * columns, Home: -Infinity, End: Infinity,
    };
    if (!(event.key in moves)) return false;
    const far = this.active + moves[event.key];
    const inside = far >= 0 && far < this.total;
    this.move(inside || Math.abs(moves[event.key]) > columns ? far : Math.abs(moves[event.key]) === 1 ? far : this.active);
    return true;
  }

  clicked(event, twice = false) {
    const tile = event.target.closest(".tile");
    if (!tile) return;
    this.move(Number(tile.dataset.place));
    if (twice) this.options.opened?.(this.current, this.active);
  }

  paint() {
    if (!this.layout || !this.node.clientHeight) return;
    const { columns, step, gap, width, height } = this.layout;
    const first = Math.max(0, Math.floor(this.above / step) - 1) * columns;
    const last = Math.min(this.total, (Math.ceil((this.above + this.node.clientHeight) / step) + 1) * columns);
    for (const [place, tile] of this.tiles)
      if (place < first || place >= last) {
        this.tiles.delete(place);
        tile.node.hidden = true;
        tile.node.classList.remove("active");
        tile.node.setAttribute("aria-selected", "false");
        this.spare.push(tile);
      }
    const end = performance.now() + BUDGET;
    let late = false;
    for (let place = first; place < last; place += 1) {
      const tile = this.tiles.get(place) || this.tileFor(place);
      const x = (place % columns) * (width + gap);
      const y = Math.floor(place / columns) * step - this.offset;
      tile.node.style.transform = `translate(${x}px, ${y}px)`;
      if (performance.now() < end) this.dress(tile, place, width, height);
      else late = true;
    }
    if (late) requestAnimationFrame(() => this.paint()); // the rest in the next frame
    this.node.setAttribute("aria-activedescendant", this.tiles.has(this.active) ? this.tiles.get(this.active).node.id : "");
    this.fetch(first, last);
  }

  tileFor(place) {
    let tile = this.spare.pop();
    if (!tile) {
      const node = el("div", { class: "tile", role: "option", id: `tile-${(VirtualGrid.made += 1)}` });
      tile = { node, parts: this.options.make(node) };
      this.sheet.append(node);
    }
    tile.node.hidden = false;
    tile.item = undefined;
    this.tiles.set(place, tile);
    return tile;
  }

  dress(tile, place, width, height) {
    const item = this.item(place);
    tile.node.classList.toggle("active", place === this.active);
    tile.node.setAttribute("aria-selected", place === this.active);
    if (tile.item === item && item !== undefined) return;
    tile.node.dataset.place = place;
    tile.node.style.width = `${width}px`;
    tile.node.style.height = `${height}px`;
    tile.node.setAttribute("aria-posinset", place + 1);
    tile.node.setAttribute("aria-setsize", this.total);
    tile.node.setAttribute("aria-label", item ? this.options.name(item, place) : `${place + 1}, loading`);
    tile.node.classList.toggle("empty", !item);
    if (item) this.options.fill(tile, item, place, { width, height, moving: this.moving });
    tile.item = item;
  }

  fetch(first, last) {
    const epoch = this.epoch;
    for (let page = Math.floor(first / PAGE); page * PAGE < last; page += 1) {
      if (this.pages.has(page) || this.loading.has(page)) continue;
      const token = {};
      this.loading.set(page, token);
      this.options.load(page * PAGE, PAGE).then(
        (items) => {
          if (epoch !== this.epoch || this.loading.get(page) !== token) return;
          this.loading.delete(page);
          this.pages.set(page, items);
          while (this.pages.size > KEPT_PAGES) this.pages.delete(this.pages.keys().next().value);
          this.paint();
          this.options.arrived?.();
        },
        (error) => {
          if (epoch === this.epoch) this.loading.delete(page);
          this.options.failed?.(error);
        },
      );
    }
  }
}
VirtualGrid.made = 0;
