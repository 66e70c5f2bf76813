// What the page asks its server. Decisions wait in line until they are on the server's disk: one that gets no answer is
// sent again under the same id, and counts once. Knows nothing about views.

const base = location.pathname.replace(/[^/]*$/, "");

export class Refused extends Error {}

async function answered(response) {
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refused(body.error || `The server answered ${response.status}.`);
  return body;
}

export async function get(name, asked = {}) {
  const words = new URLSearchParams(Object.entries(asked).filter(([, value]) => value !== null && value !== undefined));
  return answered(await fetch(`${base}api/${name}?${words}`));
}

export async function post(name, asked = {}) {
  const options = { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(asked) };
  return answered(await fetch(`${base}api/${name}`, options));
}

export const thumb = (row) => `${base}thumb/${row}`;
export const whole = (row) => `${base}image/${row}`;
export const reference = (row) => `${base}reference/${row}`;
export const crop = (row, box) => `${base}crop/${row}/${box.map((one) => one.toFixed(2)).join(",")}`;

export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (one) => one.toString(16).padStart(2, "0")).join("");
}

let line = Promise.resolve();
let waiting = 0;
const listeners = new Set();

export function onWaiting(listener) {
  listeners.add(listener);
}

function told() {
  for (const listener of listeners) listener(waiting);
}

// Send something that decides; in order, again and again until the server answers at all.
export function decide(name, asked) {
  const body = { id: newId(), ...asked };
  waiting += 1;
  told();
  const sent = line.then(() => untilAnswered(name, body));
  line = sent.catch(() => {});
  return sent.finally(() => {
    waiting -= 1;
    told();
  });
}

async function untilAnswered(name, body) {
  for (let pause = 250; ; pause = Math.min(pause * 2, 4000)) {
    try {
      return await post(name, body);
    } catch (error) {
      if (error instanceof Refused) throw error;
      await new Promise((resolve) => setTimeout(resolve, pause));
    }
  }
}

addEventListener("beforeunload", (event) => {
  if (waiting) event.preventDefault();
});
