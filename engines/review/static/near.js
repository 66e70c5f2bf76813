// Groups of images that nearly repeat each other.

import * as api from "./api.js";
import { el, number, plural } from "./dom.js";
import { findByFilter, ImageGrid } from "./images.js";
import { decide, tell } from "./store.js";

export function nearView(parent) {
  const note = el("p", { class: "quiet", role: "status" });
  const meter = el("progress", { max: "1", value: "0", "aria-label": "Images compared", hidden: true });
  const start = el("button", { class: "strong", text: "Look among the images that the filter shows" });
  const firsts = el("button", { class: "plain", text: "Keep each group's first, reject the others", hidden: true });
  const bar = el("div", { class: "bar" }, start, firsts, meter, note);
  parent.append(bar);
  let groups = [];
  let places = [];
  let timer = 0;
  let over = false;
  const view = new ImageGrid(parent, {
    label: "Near duplicates", bulk: false, settles: false,
    find: async () => ({ query: -1, total: places.length }),
  });
  view.grid.options.load = async (from, count) => {
    const wanted = places.slice(from, from + count);
    const { items } = await api.post("items", { rows: wanted.map((one) => one.row) });
    return items.map((item, place) => ({ ...item, title: wanted[place].title, note: item.name.replace(/^0+(?=\d)/, "") }));
  };

  async function look(asked = {}) {
    clearTimeout(timer);
    let found;
    try {
      found = await api.post("near", asked);
    } catch (error) {
      meter.hidden = true;
      note.textContent = "";
      return tell("trouble", error.message);
    }
    if (over) return undefined;
    meter.hidden = !found.searching;
    meter.value = found.total ? found.done / found.total : 0;
    if (found.searching) {
      note.textContent = `${number(found.done)} of ${plural(found.total, "image")} looked at`;
      timer = setTimeout(look, 400);
    } else if (found.complete) {
      groups = found.groups;
      places = groups.flatMap((rows, group) =>
        rows.map((row, place) => ({ row, title: `Group ${group + 1}, ${place + 1} of ${rows.length}` })));
      const beyond = found.left_out ? `; ${number(found.left_out)} more were not looked at: narrow the filter` : "";
      note.textContent = `${plural(found.all_groups, "group")} among ${plural(found.total, "image")}${beyond}`;
      firsts.hidden = !groups.length;
      view.ask();
    } else note.textContent = "Pictures are compared as small grey thumbnails, mirrored ones, too. Some 200 images a second.";
    return undefined;
  }

  start.addEventListener("click", async () => {
    const { query } = await findByFilter();
    look({ query });
  });
  firsts.addEventListener("click", async () => {
    const rows = groups.flatMap((one) => one.slice(1));
    if (!confirm(`Reject ${plural(rows.length, "image")}? Undo takes each back.`)) return;
    for (let from = 0; from < rows.length; from += 200) {
      const { items } = await api.post("items", { rows: rows.slice(from, from + 200) });
      await decide({ do: "reject", images: items.map((item) => item.name) });
    }
  });
  look();
  return { close: () => ((over = true), clearTimeout(timer), view.close(), bar.remove()) };
}
