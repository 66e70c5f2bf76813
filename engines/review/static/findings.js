// What an audit found, worst first: K accepts what it proposes, X says that it is wrong.

import * as api from "./api.js";
import { el, newest, number, picture as showPicture, plural, say } from "./dom.js";
import { answerFinding, on, state, tell } from "./store.js";
import { makeCrop } from "./tiles.js";
import { openViewer } from "./viewer.js";
import { VirtualGrid } from "./virtual.js";

const KINDS = {
  missing: "Missing label", spurious: "Nothing there", class: "Other class", loose: "Loose box", duplicate: "Labelled twice",
  outside: "Outside the image",
};

function proposal(one) {
  const given = one.given_label;
  return {
    missing: `add ${one.label}`, spurious: `remove ${given}`, duplicate: `remove ${given}`, class: `${given} is ${one.label}`,
    loose: `fit ${given}`, outside: one.box ? `cut ${given} to the image` : `remove ${given}`,
  }[one.kind];
}

export function findingsView(parent) {
  const until = new AbortController();
  const kinds = el("div", { class: "reasons", role: "group", "aria-label": "Kinds of findings" });
  const shown = el("p", { class: "shown", role: "status" });
  const bar = el("div", { class: "bar" }, shown, kinds);
  parent.append(bar);
  let kind = null;
  const grid = new VirtualGrid(parent, {
    label: "Findings", least: 190, high: (width) => width + 48, make, fill,
    name: (one) => `${KINDS[one.kind]}, ${proposal(one)}, ${Math.round(one.confidence * 100)} %, ${one.name}, ${one.answer || "open"}`,
    load: async (start) => (await api.get("audit", { kind, start })).items,
    opened: open, failed: (error) => tell("trouble", error.message),
  });

  const asking = newest();
  async function ask(keepPlace = false) {
    const counts = asking();
    const found = await api.get("audit", { kind, start: 0 });
    if (!counts()) return;
    shown.textContent = plural(found.total, "finding");
    const all = Object.values(found.kinds).reduce((sum, one) => sum + one, 0);
    const chips = [[null, "All", all], ...Object.entries(found.kinds).map(([name, count]) => [name, KINDS[name], count])];
    kinds.replaceChildren(...chips.map(([name, text, count]) => {
      const chip = el("button", { class: "chip", "aria-pressed": name === kind, text: `${text} ` },
        el("span", { class: "count", text: number(count) }));
      chip.addEventListener("click", () => {
        kind = name;
        ask();
      });
      return chip;
    }));
    grid.show(found.total, keepPlace);
  }

  async function answer(one, accept) {
    if (one.answer) {
      say("This finding was answered already; U takes the last answer back.");
      return;
    }
    grid.renew([{ ...one, answer: accept ? "accepted" : "dismissed" }], (mine, other) => mine.key === other.key);
    say(`${accept ? "accepted" : "dismissed"}: ${proposal(one)}`);
    grid.move(grid.active + 1);
    if (!(await answerFinding(one.key, accept))) ask(true);
  }

  function open() {
    if (grid.current && grid.current.row !== null)
      openViewer({
        row: grid.current.row, box: grid.current.box || grid.current.given_box,
        step: (by) => grid.step(by),
        closed: () => {
          ask(true);
          grid.node.focus({ preventScroll: true });
        },
      });
  }

  grid.node.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const key = event.key.toLowerCase();
    if (grid.key(event)) event.preventDefault();
    else if (["k", "a", "x"].includes(key) && grid.current) {
      event.preventDefault();
      answer(grid.current, key !== "x");
    } else if (key === "enter" || key === " ") {
      event.preventDefault();
      open();
    }
  });
  on("undone", () => ask(true), until.signal);
  ask();
  return { close: () => (until.abort(), grid.close(), bar.remove()) };
}

function make(node) {
  const old = el("span", { class: "edge given", "aria-hidden": "true" });
  const what = el("span", { class: "what" });
  const why = el("span", { class: "name" });
  node.classList.add("finding");
  return { ...makeCrop(node, el("div", { class: "foot two" }, what, why), old), old, what, why };
}

function fill(tile, one, place, { moving }) {
  const { picture, edge, old, stamp, what, why } = tile.parts;
  const box = one.box || one.given_box;
  if (one.row !== null) showPicture(picture, api.crop(one.row, box), moving);
  const half = Math.max(Math.max(box[2] - box[0], box[3] - box[1]) * 0.85, 12);
  const middle = [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2];
  const put = (node, corners, label) => {
    node.hidden = !corners;
    if (!corners) return;
    const at = corners.map((value, place) => (100 * (value - middle[place % 2] + half)) / (2 * half));
    node.style.inset = `${at[1]}% ${100 - at[2]}% ${100 - at[3]}% ${at[0]}%`;
    const known = state.about.classes.find((entry) => entry.name === label);
    node.style.borderColor = known ? known.colour : "#fff";
  };
  put(edge, one.box, one.label || one.given_label);
  put(old, one.given_box, one.given_label);
  what.textContent = `${KINDS[one.kind]} · ${Math.round(one.confidence * 100)} %`;
  why.textContent = proposal(one);
  stamp.textContent = { accepted: "✓", dismissed: "✕" }[one.answer] || "";
  tile.node.classList.toggle("kept", one.answer === "accepted");
  tile.node.classList.toggle("rejected", one.answer === "dismissed");
}
