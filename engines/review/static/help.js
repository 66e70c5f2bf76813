// The page of keys. Knows nothing about what they do.

import { el } from "./dom.js";

const KEYS = [
  ["Everywhere", [
    ["Arrows, Page Up and Down, Home, End", "move"], ["Enter", "open an image"], ["U", "take the last decision back"],
    ["[ and ]", "lower or raise the threshold of the class at hand"], ["1 to 9", "choose that class"],
    ["Shift 1 to 6", "go to that view"], ["/", "go to the filter"], ["?", "this list"],
  ]],
  ["Images, near duplicates, left out", [["K", "keep, and go on"], ["X", "reject, and go on"]]],
  ["Crops", [["K", "it is a label, whatever it scores"], ["X", "it is none"]]],
  ["Findings of an audit", [["K", "accept what is proposed"], ["X", "it is wrong"]]],
  ["One image", [
    ["K and X", "keep or reject, and go on"], ["← and →", "the image before, the next one"], ["N and P", "choose the next box, the one before"],
    ["1 to 9", "make the chosen box that class"], ["D", "delete it"], ["F", "confirm it"], ["M", "move it by arrows, with Shift resize it"],
    ["A", "draw a box"], ["Enter", "keep what was moved or drawn"], ["W", "show boxes below the thresholds, too"],
    ["+ − 0", "zoom"], ["Esc", "drop what is being drawn; back"],
  ]],
];

export function openHelp() {
  const dialog = document.getElementById("help");
  if (!dialog.firstChild) {
    const close = el("button", { class: "plain", text: "Close", onclick: () => dialog.close() });
    dialog.append(el("div", { class: "help-top" }, el("h2", { id: "help-title", text: "Keys" }), close));
    for (const [title, rows] of KEYS)
      dialog.append(el("h3", { text: title }), el("dl", {}, ...rows.flatMap(([keys, what]) => [el("dt", {}, el("kbd", { text: keys })), el("dd", { text: what })])));
  }
  dialog.showModal();
}
