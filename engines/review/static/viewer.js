// One image over the whole page: its boxes, its words, its reference, and everything that can be decided about it.

import * as api from "./api.js";
import { el, newest, plural, say, typing } from "./dom.js";
import { Editor } from "./editor.js";
import { colour, inkOn } from "./marks.js";
import { answerFinding, corners, decide, KEEP, labelled, on, REJECT, state, tell, undo, verdict, wasOf } from "./store.js";

const dialog = document.getElementById("viewer");
let now = null; // {step, closed}: where the next image comes from
let item = null;
let editor = null;
let parts = null;

export async function openViewer({ row, box, step, closed }) {
  if (!parts) build();
  now = { step, closed };
  item = null;
  if (!dialog.open) dialog.showModal();
  parts.canvas.focus({ preventScroll: true });
  await show(row, box);
}

function build() {
  const canvas = el("canvas", { class: "stage", tabindex: "0", role: "img", "aria-label": "The image with its boxes" });
  parts = {
    canvas,
    name: el("h2", { class: "viewer-name" }),
    state: el("p", { class: "verdict", role: "status" }),
    tools: el("div", { class: "tools" }),
    words: el("dl", { class: "words" }),
    boxes: el("ul", { class: "boxes", "aria-label": "Boxes" }),
    reference: el("figure", { class: "reference", hidden: true }),
    findings: el("ul", { class: "boxes", "aria-label": "Findings", hidden: true }),
    hint: el("p", { class: "hint quiet" }),
    classes: el("select", { "aria-label": "Class of the chosen box" }),
  };
  parts.classes.append(...state.about.classes.map((one, label) => el("option", { value: String(label), text: one.name })));
  parts.classes.addEventListener("change", () => setClass(Number(parts.classes.value)));
  editor = new Editor(canvas, { chosen, changed, told: say });
  const close = el("button", { class: "plain", onclick: () => dialog.close() }, "Close ", el("kbd", { text: "Esc" }));
  const top = el("div", { class: "viewer-top" }, parts.name, parts.state, button("Previous", "←", () => go(-1)), button("Next", "→", () => go(1)), close);
  const side = el("div", { class: "viewer-side", role: "region", "aria-label": "About this image", tabindex: "0" },
    el("div", { class: "tools" }, button("Keep", "K", () => judge(true), "good"), button("Reject", "X", () => judge(false), "bad")),
    parts.words, parts.reference, parts.findings,
    el("h3", { text: "Boxes" }),
    el("div", { class: "tools" }, button("Draw", "A", () => begin("draw")), button("Move", "M", () => begin("move")),
      button("Delete", "D", remove), button("Confirm", "F", confirmBox), button("Weak ones", "W", weak)),
    el("label", { class: "field" }, el("span", { text: "Class" }), parts.classes), parts.boxes);
  dialog.append(top, el("div", { class: "viewer-body" }, el("div", { class: "viewer-stage" }, canvas, parts.hint), side));
  dialog.addEventListener("keydown", key);
  dialog.addEventListener("cancel", (event) => {
    if (!editor.draft) return;
    event.preventDefault();
    editor.cancel();
    hint();
  });
  dialog.addEventListener("close", () => now.closed?.());
  on("decided", ({ items }) => {
    const fresh = dialog.open && item && items.find((one) => one.row === item.row);
    if (fresh) update({ ...item, ...fresh });
  });
  on("thresholds", () => item && dialog.open && update(item));
}

function button(text, keyName, act, kind = "") {
  return el("button", { class: `plain ${kind}`, onclick: act }, `${text} `, el("kbd", { text: keyName }));
}

const asking = newest();
async function show(row, box = null) {
  const counts = asking();
  let found;
  try {
    found = await api.get("image", { row });
  } catch (error) {
    return tell("trouble", error.message);
  }
  const picture = found.shown ? await loaded(api.whole(row)) : null;
  if (!counts()) return undefined;
  item = found;
  editor.show(item, picture);
  if (box) editor.choose(item.boxes.findIndex((one) => box.every((value, place) => Math.abs(value - one[place]) < 0.6)));
  update(item);
  dialog.dataset.row = row;
  return undefined;
}

function loaded(address) {
  return new Promise((resolve) => {
    const picture = new Image();
    picture.addEventListener("load", () => resolve(picture));
    picture.addEventListener("error", () => resolve(null));
    picture.src = address;
  });
}

function update(fresh) {
  item = fresh;
  editor.show(item, editor.picture);
  parts.name.textContent = item.name;
  parts.state.textContent = { [KEEP]: "✓ Kept", [REJECT]: "✕ Rejected" }[item.verdict] || (item.edited ? "✎ Boxes changed" : "");
  parts.state.className = `verdict ${{ [KEEP]: "good", [REJECT]: "bad" }[item.verdict] || ""}`;
  const words = [
    ["Size", `${item.width} × ${item.height}`], ["Prompt", item.prompt], ["Reference", item.reference],
    ["Strength", item.strength?.toFixed(2)], ["Left out", item.reason],
  ];
  parts.words.replaceChildren(...words.filter(([, text]) => text).flatMap(([name, text]) => [el("dt", { text: name }), el("dd", { text })]));
  parts.reference.hidden = !item.has_reference;
  if (item.has_reference && parts.reference.dataset.row !== String(item.row)) {
    parts.reference.dataset.row = item.row;
    parts.reference.replaceChildren(
      el("img", { src: api.reference(item.row), alt: `The reference, ${item.reference}` }), el("figcaption", { text: "Painted from" }));
  }
  list();
  hint();
}

function list() {
  const shown = editor.choices;
  const rows = shown.map((index) => {
    const box = item.boxes[index];
    const chip = el("span", { class: "swatch" });
    chip.style.background = colour(box[5]);
    const mark = { 1: "✓", 2: "crowd" }[box[6]] || (state.about.kind === "run" ? box[4].toFixed(2) : "");
    const row = el("button", { class: "box-row", "aria-pressed": index === editor.chosen }, chip,
      el("span", { class: "name", text: state.about.classes[box[5]].name }), el("span", { class: "count", text: labelled(box) ? mark : `${mark} weak` }));
    row.addEventListener("click", () => editor.choose(index));
    return el("li", {}, row);
  });
  parts.boxes.replaceChildren(...rows, ...(rows.length ? [] : [el("li", { class: "quiet", text: "No box." })]));
  const open = (item.findings || []).filter((one) => !one.answer);
  parts.findings.hidden = !open.length;
  parts.findings.replaceChildren(...open.map((one) => el("li", { class: "finding-row" },
    el("span", { text: `Audit: ${one.kind} ${one.label || one.given_label}, ${Math.round(one.confidence * 100)} %` }),
    el("button", { class: "plain", text: "Accept", onclick: () => answer(one, true) }),
    el("button", { class: "plain", text: "Dismiss", onclick: () => answer(one, false) }))));
  const box = item.boxes[editor.chosen];
  parts.classes.value = String(box ? box[5] : state.label);
}

async function answer(one, accept) {
  one.answer = accept ? "accepted" : "dismissed";
  await answerFinding(one.key, accept);
  list();
}

function hint() {
  parts.hint.textContent = editor.draft
    ? "Arrows move the box, Shift and arrows resize it, Ctrl goes far. A digit sets its class. Enter keeps it, Esc does not."
    : "N and P choose a box. Drag to move one, its corners to resize it. + − 0 zoom.";
}

function chosen(index) {
  const box = item.boxes[index];
  if (box) {
    state.label = box[5];
    say(`${state.about.classes[box[5]].name}, ${box[4].toFixed(2)}`);
  }
  list();
}

function begin(kind) {
  if (kind === "move" && editor.chosen < 0) return say("Choose a box first, with N.");
  if (!item.shown) return say("This image was never written.");
  editor.begin(kind, state.label);
  parts.canvas.focus();
  hint();
  return say(kind === "draw" ? `Drawing ${state.about.classes[state.label].name}` : "Moving");
}

async function changed(draft) {
  const box = draft.box.map((one) => Math.round(one * 100) / 100);
  const label = state.about.classes[draft.label].name;
  const decision = draft.kind === "draw" ? { do: "draw", images: [item.name], box, label }
    : { do: "change", images: [item.name], was: wasOf(item.boxes[draft.index]), box, label };
  await decide(decision);
  editor.choose(item.boxes.findIndex((one) => box.every((value, place) => Math.abs(value - one[place]) < 0.02)));
}

function setClass(label) {
  state.label = label;
  if (editor.draft) {
    editor.draft.label = label;
    editor.draw();
    list();
    return;
  }
  const box = item.boxes[editor.chosen];
  if (!box || (box[5] === label && box[6] === 1)) return;
  say(`${state.about.classes[label].name}`);
  changed({ kind: "change", index: editor.chosen, box: corners(box), label });
}

function remove() {
  const box = item.boxes[editor.chosen];
  if (!box) return say("Choose a box first, with N.");
  editor.choose(-1);
  return decide({ do: "delete", images: [item.name], was: wasOf(box) });
}

function confirmBox() {
  const box = item.boxes[editor.chosen];
  if (!box) return say("Choose a box first, with N.");
  return decide({ do: "confirm", images: [item.name], was: wasOf(box) });
}

function weak() {
  editor.weak = !editor.weak;
  editor.draw();
  list();
  say(editor.weak ? "weak boxes shown" : "labels alone shown");
}

function judge(keep) {
  if (!item.shown) return say("This image was never written.");
  verdict(item, keep);
  say(`${item.name} ${keep ? "kept" : "rejected"}`);
  return go(1);
}

async function go(by) {
  const row = await now.step(by);
  if (row === null || row === undefined) return say(by > 0 ? "This was the last image." : "This is the first image.");
  await show(row);
  return say(`${item.name}, ${plural(item.boxes.filter(labelled).length, "label")}`);
}

function key(event) {
  if (!item || typing(event.target) || event.altKey || event.metaKey) return;
  const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const label = Number(name) - 1;
  const acts = {
    k: () => judge(true), x: () => judge(false), u: () => undo(), a: () => begin("draw"), m: () => begin("move"), d: remove,
    f: confirmBox, w: weak, n: () => editor.next(1), p: () => editor.next(-1), ArrowRight: () => go(1), ArrowLeft: () => go(-1),
    "+": () => editor.zoomBy(1.4), "=": () => editor.zoomBy(1.4), "-": () => editor.zoomBy(1 / 1.4), 0: () => editor.fit(),
    Delete: remove,
  };
  if (editor.nudge(event)) event.preventDefault();
  else if (editor.draft && name === "Enter") editor.commit();
  else if (/^[1-9]$/.test(name) && label < state.about.classes.length) setClass(label);
  else if (!event.ctrlKey && !editor.draft && acts[name]) acts[name]();
  else return;
  event.preventDefault();
  event.stopPropagation();
  hint();
}
