// Boxes on a canvas, in their classes' colours. Knows nothing about where the picture comes from.

import { labelled, state } from "./store.js";

export const colour = (label) => state.about.classes[label].colour;

// Where a picture of that size lies when it is fitted into a frame: scale and offsets.
export function fitted(width, height, frameWidth, frameHeight) {
  const scale = Math.min(frameWidth / width, frameHeight / height);
  return { scale, x: (frameWidth - width * scale) / 2, y: (frameHeight - height * scale) / 2 };
}

// Draw an item's labels over a thumbnail in a canvas of that size in CSS pixels.
export function drawMarks(canvas, item, width, height) {
  const ratio = Math.min(devicePixelRatio || 1, 2);
  const [wide, high] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== wide || canvas.height !== high) {
    canvas.width = wide;
    canvas.height = high;
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(1, 0, 0, 1, 0, 0);
  pen.clearRect(0, 0, wide, high);
  const at = fitted(item.width, item.height, width, height);
  pen.setTransform(at.scale * ratio, 0, 0, at.scale * ratio, at.x * ratio, at.y * ratio);
  let shown = 0;
  for (const box of item.boxes) {
    if (!labelled(box)) continue;
    if (box[6] !== 2) shown += 1;
    strokeBox(pen, box, at.scale, 1.6);
  }
  return shown;
}

export function strokeBox(pen, box, scale, width, dashed = box[6] === 2) {
  const [x0, y0, x1, y1] = box;
  pen.setLineDash(dashed ? [5 / scale, 4 / scale] : []);
  pen.lineWidth = (width + 1.2) / scale;
  pen.strokeStyle = "rgba(0, 0, 0, 0.35)";
  pen.strokeRect(x0, y0, x1 - x0, y1 - y0);
  pen.lineWidth = width / scale;
  pen.strokeStyle = colour(box[5]);
  pen.strokeRect(x0, y0, x1 - x0, y1 - y0);
  pen.setLineDash([]);
}

// Black or white, whichever reads better on a colour.
export function inkOn(hex) {
  const [r, g, b] = [1, 3, 5].map((place) => parseInt(hex.slice(place, place + 2), 16) / 255);
  return 0.2126 * r ** 2.2 + 0.7152 * g ** 2.2 + 0.0722 * b ** 2.2 > 0.2 ? "#000" : "#fff";
}
