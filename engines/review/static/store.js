// What all views share: what is reviewed, the thresholds, the filter, and the news that something of it changed.
// Knows nothing about the DOM.

import * as api from "./api.js";

export const KEEP = 1;
export const REJECT = 2;

export const state = {
  about: null, // what the server says of the run or dataset
  thresholds: [], // of each class
  label: 0, // the class that [ and ] and the crops are about
  filter: {},
  counts: null, // labels by class, and images, at the thresholds
  version: 0, // lines of decisions that this window knows of
};

const bus = new EventTarget();

export function on(name, listener, signal) {
  bus.addEventListener(name, (event) => listener(event.detail), { signal });
}

export function tell(name, detail) {
  bus.dispatchEvent(new CustomEvent(name, { detail }));
}

export async function begin() {
  state.about = await api.get("about");
  state.thresholds = state.about.thresholds.slice();
  state.version = state.about.version;
}

export const isRun = () => state.about.kind === "run";

// Which of an image's boxes are labels now: [x0, y0, x1, y1, score, label, flag], flag 1 vouched for, 2 a crowd.
export function labelled(box) {
  return box[6] === 1 || box[4] >= state.thresholds[box[5]];
}

export function setThreshold(label, value) {
  const low = isRun() ? 0.05 : 0;
  state.thresholds[label] = Math.min(1, Math.max(low, Math.round(value * 100) / 100));
  state.label = label;
  tell("thresholds", label);
  count();
}

let keeping = 0;

// Thresholds are kept a moment after the last move, so that `finalize` obeys them.
export function keepThresholds() {
  if (!isRun()) return;
  clearTimeout(keeping);
  const thresholds = state.thresholds.slice();
  keeping = setTimeout(async () => {
    try {
      await api.post("thresholds", { thresholds });
      tell("settled");
    } catch (error) {
      tell("trouble", error.message);
    }
  }, 200);
}

let counting = false;
let stale = false;

// One question at a time, and the newest thresholds last.
export async function count() {
  stale = true;
  if (counting) return;
  counting = true;
  try {
    while (stale) {
      stale = false;
      state.counts = await api.post("counts", { thresholds: state.thresholds });
      tell("counts", state.counts);
    }
  } catch (error) {
    tell("trouble", error.message);
  } finally {
    counting = false;
  }
}

// What a decision's answer says: items that look different now.
function taken(answer) {
  state.version = answer.version;
  state.about.decisions = answer.decisions;
  tell("decided", answer);
  count();
  return answer;
}

async function sent(name, asked) {
  try {
    return taken(await api.decide(name, asked));
  } catch (error) {
    tell("trouble", error.message);
    return null;
  }
}

export const decide = (...decisions) =>
  sent("decide", { decisions: decisions.map((one) => ({ id: api.newId(), ...one })), id: undefined });
export const verdict = (item, keep) => decide({ do: keep ? "keep" : "reject", images: [item.name] });
export const verdictAll = (query, keep) => sent("decide_all", { query, do: keep ? "keep" : "reject" });
export const answerFinding = (key, accept) => sent("accept", { key, accept });
export const undo = () => sent("undo", {});

export const corners = (box) => box.slice(0, 4);
export const wasOf = (box) => ({ box: corners(box), label: state.about.classes[box[5]].name });

// Look whether another window of this review decided something.
export async function lookForChanges() {
  const answer = await api.get("changes", { since: state.version });
  if (answer.version !== state.version) taken(answer);
}
