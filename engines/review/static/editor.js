// One picture with its boxes on a canvas: zoom, pan, choose a box, move it, resize it, draw one; by pointer and by keys.
// Knows nothing about decisions: what came of it is handed to `changed`.

import { colour, fitted, strokeBox } from "./marks.js";
import { labelled } from "./store.js";

const HANDLE = 7; // pixels of the screen

export class Editor {
  // hooks: chosen(index), changed(draft), told(text)
  constructor(canvas, hooks) {
    Object.assign(this, { canvas, hooks, item: null, picture: null, zoom: 1, chosen: -1, draft: null, weak: false });
    this.middle = [0, 0];
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.moved(event));
    canvas.addEventListener("pointerup", (event) => this.up(event));
    canvas.addEventListener("pointercancel", () => (this.drag = null));
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  show(item, picture) {
    const same = this.item && this.item.row === item.row;
    Object.assign(this, { item, picture, draft: null });
    if (!same) {
      this.chosen = -1;
      this.fit();
    } else if (this.chosen >= item.boxes.length) this.chosen = -1;
    this.draw();
  }

  fit() {
    this.zoom = 1;
    this.middle = [this.item.width / 2, this.item.height / 2];
    this.draw();
  }

  // Boxes that can be chosen: labels, and with `weak` the others, too.
  get choices() {
    return this.item.boxes.map((_, index) => index).filter((index) => this.weak || labelled(this.item.boxes[index]));
  }

  choose(index) {
    this.chosen = index;
    this.draft = null;
    this.draw();
    this.hooks.chosen(index);
  }

  next(by) {
    const all = this.choices;
    if (!all.length) return;
    const at = all.indexOf(this.chosen);
    this.choose(all[(at + by + all.length) % all.length] ?? all[0]);
  }

  // A new box in the middle of what is seen, or the chosen one, to be moved by keys.
  begin(kind, label) {
    const { item } = this;
    if (kind === "move" && this.chosen < 0) return;
    const side = Math.min(item.width, item.height) / 5 / this.zoom;
    const [x, y] = this.middle;
    const box = kind === "move" ? item.boxes[this.chosen].slice(0, 4)
      : inside([x - side / 2, y - side / 2, x + side / 2, y + side / 2], item);
    this.draft = { kind, label: kind === "move" ? item.boxes[this.chosen][5] : label, box, index: this.chosen };
    this.draw();
  }

  commit() {
    const draft = this.draft;
    this.draft = null;
    const [x0, y0, x1, y1] = draft.box;
    if (x1 - x0 < 2 || y1 - y0 < 2) this.draw();
    else this.hooks.changed(draft);
  }

  cancel() {
    this.draft = null;
    this.draw();
  }

  // Arrow keys on a draft: the box moves; with Shift its lower right corner does. Ctrl goes far.
  nudge(event) {
    const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (!this.draft || !(event.key in ways)) return false;
    const far = event.ctrlKey ? 10 : 1;
    const [dx, dy] = ways[event.key].map((one) => one * far * Math.max(1, Math.round(this.item.width / 512)));
    this.draft.box = event.shiftKey ? stretched(this.draft.box, dx, dy, this.item) : shifted(this.draft.box, dx, dy, this.item);
    this.draw();
    return true;
  }

  zoomBy(factor, at = null) {
    const { scale, x, y } = this.view();
    const point = at || [this.canvas.clientWidth / 2, this.canvas.clientHeight / 2];
    const spot = [(point[0] - x) / scale, (point[1] - y) / scale];
    const zoom = Math.min(16, Math.max(1, this.zoom * factor));
    const change = this.zoom / zoom;
    this.zoom = zoom;
    this.middle = this.middle.map((one, axis) => spot[axis] + (one - spot[axis]) * change);
    if (zoom === 1) this.middle = [this.item.width / 2, this.item.height / 2];
    this.draw();
  }

  view() {
    const { clientWidth: wide, clientHeight: high } = this.canvas;
    const scale = fitted(this.item.width, this.item.height, wide - 16, high - 16).scale * this.zoom;
    return { scale, x: wide / 2 - this.middle[0] * scale, y: high / 2 - this.middle[1] * scale };
  }

  draw() {
    const { canvas, item } = this;
    if (!item || !canvas.clientWidth) return;
    const ratio = Math.min(devicePixelRatio || 1, 2);
    canvas.width = canvas.clientWidth * ratio;
    canvas.height = canvas.clientHeight * ratio;
    const pen = canvas.getContext("2d");
    const { scale, x, y } = this.view();
    pen.setTransform(scale * ratio, 0, 0, scale * ratio, x * ratio, y * ratio);
    pen.imageSmoothingEnabled = scale < 3;
    if (this.picture) pen.drawImage(this.picture, 0, 0, item.width, item.height);
    item.boxes.forEach((box, index) => {
      if (this.draft && this.draft.kind === "move" && index === this.draft.index) return;
      if (labelled(box)) strokeBox(pen, box, scale, index === this.chosen ? 3 : 1.8);
      else if (this.weak) strokeBox(pen, box, scale, index === this.chosen ? 2.4 : 1, true);
    });
    if (this.draft) {
      strokeBox(pen, [...this.draft.box, 1, this.draft.label, 1], scale, 3);
      this.handles(pen, this.draft.box, this.draft.label, scale);
    } else if (this.chosen >= 0) this.handles(pen, item.boxes[this.chosen], item.boxes[this.chosen][5], scale);
  }

  handles(pen, box, label, scale) {
    const size = HANDLE / scale;
    pen.fillStyle = "#fff";
    pen.strokeStyle = colour(label);
    pen.lineWidth = 2 / scale;
    for (const [x, y] of points(box)) {
      pen.beginPath();
      pen.rect(x - size / 2, y - size / 2, size, size);
      pen.fill();
      pen.stroke();
    }
  }

  at(event) {
    const edge = this.canvas.getBoundingClientRect();
    const { scale, x, y } = this.view();
    return [(event.clientX - edge.left - x) / scale, (event.clientY - edge.top - y) / scale];
  }

  down(event) {
    if (!this.item || event.button) return;
    this.canvas.setPointerCapture(event.pointerId);
    const spot = this.at(event);
    const { scale } = this.view();
    if (this.draft && this.draft.kind === "draw") {
      this.drag = { kind: "draw", from: spot };
      return;
    }
    const current = this.draft ? this.draft.box : this.chosen >= 0 ? this.item.boxes[this.chosen] : null;
    const handle = current ? points(current).findIndex((one) => near(one, spot, (HANDLE + 3) / scale)) : -1;
    if (handle >= 0) {
      if (!this.draft) this.begin("move");
      this.drag = { kind: "resize", handle };
      return;
    }
    const hit = this.choices.filter((index) => within(this.item.boxes[index], spot)).sort((a, b) => area(this.item.boxes[a]) - area(this.item.boxes[b]))[0];
    if (hit !== undefined) {
      if (hit !== this.chosen) this.choose(hit);
      this.drag = { kind: "move", from: spot, box: this.item.boxes[hit].slice(0, 4), far: false };
    } else {
      if (this.chosen >= 0) this.choose(-1);
      this.drag = { kind: "pan", x: event.clientX, y: event.clientY, middle: this.middle.slice() };
    }
  }

  moved(event) {
    const { drag } = this;
    if (!drag) return;
    const spot = this.at(event);
    const { scale } = this.view();
    if (drag.kind === "draw") {
      this.draft.box = inside([Math.min(drag.from[0], spot[0]), Math.min(drag.from[1], spot[1]), Math.max(drag.from[0], spot[0]), Math.max(drag.from[1], spot[1])], this.item);
    } else if (drag.kind === "resize") {
      const box = this.draft.box.slice();
      const [x, y] = [Math.min(this.item.width, Math.max(0, spot[0])), Math.min(this.item.height, Math.max(0, spot[1]))];
      box[drag.handle % 2 ? 2 : 0] = x;
      box[drag.handle > 1 ? 3 : 1] = y;
      if (box[2] - box[0] > 1 && box[3] - box[1] > 1) this.draft.box = box;
    } else if (drag.kind === "move") {
      const [dx, dy] = [spot[0] - drag.from[0], spot[1] - drag.from[1]];
      if (!drag.far && Math.hypot(dx, dy) * scale < 4) return;
      if (!drag.far) this.begin("move");
      drag.far = true;
      this.draft.box = shifted(drag.box, dx, dy, this.item);
    } else if (this.zoom > 1) {
      this.middle = [drag.middle[0] - (event.clientX - drag.x) / scale, drag.middle[1] - (event.clientY - drag.y) / scale];
    }
    this.draw();
  }

  up() {
    const { drag } = this;
    this.drag = null;
    if (drag && this.draft && (drag.kind !== "move" || drag.far)) this.commit();
  }

  wheel(event) {
    if (!this.item) return;
    event.preventDefault();
    const edge = this.canvas.getBoundingClientRect();
    this.zoomBy(Math.exp(-event.deltaY / 400), [event.clientX - edge.left, event.clientY - edge.top]);
  }
}

const points = ([x0, y0, x1, y1]) => [[x0, y0], [x1, y0], [x0, y1], [x1, y1]];
const near = (one, other, far) => Math.abs(one[0] - other[0]) < far && Math.abs(one[1] - other[1]) < far;
const within = ([x0, y0, x1, y1], [x, y]) => x >= x0 && x <= x1 && y >= y0 && y <= y1;
const area = ([x0, y0, x1, y1]) => (x1 - x0) * (y1 - y0);

function inside([x0, y0, x1, y1], { width, height }) {
  return [Math.max(0, x0), Math.max(0, y0), Math.min(width, x1), Math.min(height, y1)];
}

function shifted([x0, y0, x1, y1], dx, dy, { width, height }) {
  const [x, y] = [Math.min(width - x1, Math.max(-x0, dx)), Math.min(height - y1, Math.max(-y0, dy))];
  return [x0 + x, y0 + y, x1 + x, y1 + y];
}

function stretched([x0, y0, x1, y1], dx, dy, { width, height }) {
  return [x0, y0, Math.min(width, Math.max(x0 + 2, x1 + dx)), Math.min(height, Math.max(y0 + 2, y1 + dy))];
}
