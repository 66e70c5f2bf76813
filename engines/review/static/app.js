// The page: its views, the keys that hold everywhere, and what it says of itself. Each view has a file of its own.

import { onWaiting } from "./api.js";
import { balanceView } from "./balance.js";
import { cropsView } from "./crops.js";
import { command, el, number, plural, say, typing } from "./dom.js";
import { filters } from "./filter.js";
import { findingsView } from "./findings.js";
import { openHelp } from "./help.js";
import { imagesView, leftOutView } from "./images.js";
import { nearView } from "./near.js";
import { histograms, thresholds } from "./panel.js";
import { begin, count, isRun, keepThresholds, lookForChanges, on, setThreshold, state, tell, undo } from "./store.js";
import * as api from "./api.js";

const find = (id) => document.getElementById(id);
const VIEWS = [
  ["images", "Images", imagesView, () => true],
  ["crops", "Crops", cropsView, () => true],
  ["near", "Near duplicates", nearView, () => true],
  ["left-out", "Left out", leftOutView, () => true],
  ["balance", "Balance", balanceView, () => true],
  ["findings", "Findings", findingsView, () => state.about.findings > 0],
];
let views = [];
let view = null;

function trouble(text) {
  const node = find("trouble");
  node.textContent = text || "";
  node.hidden = !text;
}

function show(name) {
  const chosen = views.find(([key]) => key === name) || views[0];
  view?.close();
  trouble("");
  find("main").replaceChildren();
  find("main").dataset.view = chosen[0];
  for (const link of find("tabs").querySelectorAll("a")) {
    if (link.hash === `#${chosen[0]}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  view = chosen[2](find("main"));
  document.title = `${chosen[1]} · ${state.about.title}`;
}

function tabs() {
  views = VIEWS.filter(([, , , there]) => there());
  const links = views.map(([key, text]) => {
    const link = el("a", { href: `#${key}`, text });
    if (key === "findings") link.append(" ", el("span", { class: "count", text: number(state.about.findings) }));
    return el("li", {}, link);
  });
  find("tabs").replaceChildren(...links);
}

function panel() {
  const apply = el("section", { "aria-label": "Apply" }, el("h2", { text: isRun() ? "Write the dataset so" : "Write it corrected" }),
    el("p", { class: "quiet", text: "Nothing is deleted. Every decision is on the disk already; this command obeys them all." }),
    command(state.about.apply));
  find("panel").append(thresholds(), filters(), apply);
}

let waiting = 0; // decisions that the server has not answered

function saved(now = waiting) {
  waiting = now;
  const made = plural(state.about.decisions, "decision");
  find("saved").textContent = waiting ? `${plural(waiting, "decision")} not on the disk yet` : `${made} on the disk`;
  find("saved").classList.toggle("waiting", waiting > 0);
}

async function takeBack() {
  const answer = await undo();
  if (!answer) return;
  say(answer.changed ? `Taken back: ${answer.items[0] ? answer.items[0].name : plural(answer.changed, "image")}` : "Nothing to take back.");
  tell("undone", answer);
}

// Until the journal has been read, the page looks again and shows what has come since.
async function progress() {
  const before = state.about.images;
  const fresh = await api.get("about");
  Object.assign(state.about, { images: fresh.images, complete: fresh.complete, read: fresh.read, trouble: fresh.trouble });
  const percent = Math.floor(100 * fresh.read);
  find("progress").textContent = fresh.complete ? plural(fresh.images, "image") : `${plural(fresh.images, "image")}, ${percent} % read`;
  const grown = fresh.images > 1.5 * before || fresh.complete;
  if (grown) {
    count();
    histograms();
    tell("more");
  } else state.about.images = before;
  if (fresh.trouble) trouble(fresh.trouble);
  if (!fresh.complete) setTimeout(() => progress().catch(lost), 350);
}

const lost = () => trouble("The server does not answer. Is dengine review still running?");

function key(event) {
  if (typing(event.target) || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const step = { "[": -0.01, "]": 0.01 }[event.key];
  const name = event.key.toLowerCase();
  const digit = /^Digit([1-9])$/.exec(event.code)?.[1];
  if (name === "u" || (event.ctrlKey && name === "z")) takeBack();
  else if (event.ctrlKey) return;
  else if (step && isRun()) {
    setThreshold(state.label, state.thresholds[state.label] + step);
    keepThresholds();
    say(`${state.about.classes[state.label].name} from ${state.thresholds[state.label].toFixed(2)}`);
  } else if (event.shiftKey && digit && views[digit - 1]) location.hash = views[digit - 1][0];
  else if (!event.shiftKey && digit && state.about.classes[digit - 1]) {
    state.label = digit - 1;
    say(`Class at hand: ${state.about.classes[state.label].name}`);
    for (const row of document.querySelectorAll(".threshold")) row.classList.remove("at-hand");
    document.querySelectorAll(".threshold")[state.label]?.classList.add("at-hand");
  } else if (name === "/") {
    openPanel(true);
    document.querySelector(".filters select").focus();
  } else if (name === "?") openHelp();
  else if (!passOn(event, name)) return;
  event.preventDefault();
}

// What the pictures are asked by keys, they hear from everywhere: letters always, others where nothing else would take them.
function passOn(event, name) {
  const main = find("main"), grid = main.querySelector(".grid");
  const free = event.target === document.body || event.target === main;
  if (!grid || grid.contains(event.target) || !(free || /^[a-z]$/.test(name))) return false;
  const { key, code, shiftKey } = event;
  if (grid.dispatchEvent(new KeyboardEvent("keydown", { key, code, shiftKey, cancelable: true }))) return false;
  if (!document.querySelector("dialog[open]")) grid.focus({ preventScroll: true });
  return true;
}

function openPanel(open) {
  document.body.classList.toggle("with-panel", open);
  find("panel-toggle").setAttribute("aria-expanded", open);
}

async function start() {
  await begin();
  find("title").textContent = state.about.title;
  tabs();
  panel();
  saved();
  onWaiting(saved);
  on("trouble", trouble);
  on("decided", () => saved());
  find("undo").addEventListener("click", takeBack);
  find("help-open").addEventListener("click", openHelp);
  find("panel-toggle").addEventListener("click", () => openPanel(!document.body.classList.contains("with-panel")));
  addEventListener("keydown", key);
  addEventListener("hashchange", () => {
    const name = location.hash.slice(1); // the link past everything leads to no view, and changes none
    if (views.some(([key]) => key === name)) show(name);
  });
  show(location.hash.slice(1));
  if (state.about.notes.length) trouble(state.about.notes.join(" "));
  count();
  histograms();
  progress().catch(lost);
  const look = () => document.hidden || lookForChanges().catch(lost);
  setInterval(look, 5000);
  addEventListener("focus", look);
  document.body.dataset.ready = "1";
}

start().catch((error) => trouble(error.message));
