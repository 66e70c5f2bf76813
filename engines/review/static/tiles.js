// The tile of an image: its thumbnail, its labels, its name and what was decided; and the tile of a crop. Knows nothing
// about grids.

import * as api from "./api.js";
import { el, picture as showPicture, plural } from "./dom.js";
import { drawMarks } from "./marks.js";
import { KEEP, labelled, REJECT } from "./store.js";

const FOOT = 26; // pixels of the line below a picture

export const tileHeight = (aspect) => (width) => width * aspect + FOOT;

export function makeTile(node) {
  const picture = el("img", { alt: "", decoding: "async", draggable: "false" });
  const marks = el("canvas", { "aria-hidden": "true" });
  const stamp = el("span", { class: "stamp", "aria-hidden": "true" });
  const absent = el("span", { class: "absent" });
  const name = el("span", { class: "name" });
  const count = el("span", { class: "count" });
  node.append(el("div", { class: "frame" }, picture, marks, absent, stamp), el("div", { class: "foot" }, name, count));
  picture.addEventListener("load", () => picture.classList.add("there"));
  picture.addEventListener("error", () => (absent.textContent = "cannot be read"));
  return { picture, marks, stamp, absent, name, count };
}

// A crop with the edge of its box, a stamp of what was decided, and a foot; `beneath` lies under the edge.
export function makeCrop(node, foot, ...beneath) {
  const picture = el("img", { alt: "", decoding: "async", draggable: "false" });
  const edge = el("span", { class: "edge", "aria-hidden": "true" });
  const stamp = el("span", { class: "stamp", "aria-hidden": "true" });
  node.classList.add("crop");
  node.append(el("div", { class: "frame" }, picture, ...beneath, edge, stamp), foot);
  picture.addEventListener("load", () => picture.classList.add("there"));
  return { picture, edge, stamp };
}

export function fillTile(tile, item, place, { width, height, moving }) {
  const { picture, marks, stamp, absent, name, count } = tile.parts;
  absent.textContent = item.shown ? "" : item.reason || "not painted";
  showPicture(picture, item.shown ? api.thumb(item.row) : "", moving);
  const shown = drawMarks(marks, item, width, height - FOOT);
  name.textContent = item.title || item.name.replace(/^0+(?=\d)/, "").replace(/\.\w+$/, "");
  count.textContent = item.note || plural(shown, "label");
  stamp.textContent = { [KEEP]: "✓", [REJECT]: "✕" }[item.verdict] || (item.edited ? "✎" : "");
  tile.node.classList.toggle("kept", item.verdict === KEEP);
  tile.node.classList.toggle("rejected", item.verdict === REJECT);
  tile.node.classList.toggle("edited", item.edited);
}

export function tileName(item) {
  const shown = item.boxes.filter((box) => labelled(box) && box[6] !== 2).length;
  const said = { [KEEP]: "kept", [REJECT]: "rejected" }[item.verdict];
  return [item.name, plural(shown, "label"), said, item.edited ? "boxes changed" : null, item.reason, item.title, item.note]
    .filter(Boolean)
    .join(", ");
}
