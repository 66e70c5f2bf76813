// Small helpers that make elements. Knows nothing about the review.

export function el(tag, options = {}, ...children) {
  const found = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (name.startsWith("aria-") && value !== undefined) {
      found.setAttribute(name, String(value));
      continue;
    }
    if (value === undefined || value === null || value === false) continue;
    if (name === "class") found.className = value;
    else if (name === "text") found.textContent = value;
    else if (name.startsWith("on")) found.addEventListener(name.slice(2), value);
    else found.setAttribute(name, value === true ? "" : value);
  }
  found.append(...children.filter((child) => child !== null && child !== undefined));
  return found;
}

export function svg(tag, options = {}, ...children) {
  const found = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(options)) found.setAttribute(name, value);
  found.append(...children);
  return found;
}

// Show a picture in an image; while its tile flies past, none.
export function picture(image, address, moving = false) {
  const wanted = moving ? "" : address;
  if (image.dataset.address === wanted || (moving && image.dataset.address === address)) return;
  image.dataset.address = wanted;
  image.classList.remove("there");
  if (wanted) image.src = wanted;
  else image.removeAttribute("src");
}

export const number = (value) => value.toLocaleString("en-US");
export const plural = (value, one, many = `${one}s`) => `${number(value)} ${value === 1 ? one : many}`;

let told = 0;

// Say something to who listens to the page, without moving the focus.
export function say(text) {
  const live = document.getElementById("live");
  live.textContent = "";
  clearTimeout(told);
  told = setTimeout(() => (live.textContent = text), 30);
}

export const typing = (target) =>
  target instanceof HTMLElement && target.matches("input:not([type=range], [type=checkbox]), select, textarea");

export async function copy(text, button) {
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Select it and copy";
  }
  setTimeout(() => (button.textContent = before), 1500);
}

// A command with a button that copies it.
export function command(text) {
  const button = el("button", { class: "plain", text: "Copy", onclick: () => copy(text, button) });
  return el("p", { class: "command" }, el("code", { text }), button);
}

// Of several questions the newest counts, whichever answer comes last: newest()() tells later whether it still is that.
export function newest() {
  let last = null;
  return () => {
    const mine = (last = {});
    return () => mine === last;
  };
}
