// A sheet: many windows side by side, in an order, through filters.

import { picture, save } from "./pixels.js";
import { SHEET_FIELDS, address, ask, attempt, change, chosen, percent, say, state } from "./state.js";

const $ = (id) => document.getElementById(id);
// Rows of nine, six, four, three and two are full.
const SIZE = 36;

let about;
let shown = null;
let opened;
let wanted = 0;

export function startSheet(facts, openWindow) {
  about = facts;
  opened = openWindow;
  $("horizon").replaceChildren(...about.horizons.map((h) => new Option(`${h} bars`, String(h))));
  const scored = about.factor !== null;
  const offer = { score: scored, lowest_score: scored, error: scored && about.probability && about.horizons.length > 0 };
  offer.return = offer.lowest_return = about.horizons.length > 0;
  for (const option of $("order").options) option.disabled = offer[option.value] === false;
  $("confidence-choice").hidden = !(scored && about.probability);
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  for (const control of document.querySelectorAll("[data-state]")) {
    control.addEventListener("change", () => {
      change({ [control.dataset.state]: control.value.trim(), page: "0" });
      attempt(showSheet);
    });
    control.addEventListener("input", labelConfidence);
  }
  $("again").addEventListener("click", () => {
    change({ seed: String(Number(state.seed) + 1), page: "0" });
    attempt(showSheet);
  });
  $("page-back").addEventListener("click", () => turn(-1));
  $("page-on").addEventListener("click", () => turn(1));
  $("sheet-png").addEventListener("click", () => save(drawn(), `sheet-${state.order}.png`));
}

function turn(by) {
  change({ page: String(Math.max(0, Number(state.page) + by)) });
  attempt(showSheet);
}

function labelConfidence() {
  document.querySelector('output[for="confidence"]').textContent = Number($("confidence").value).toFixed(2);
}

function parameters() {
  const given = chosen(SHEET_FIELDS);
  if (state.order === "similar") Object.assign(given, { instrument: state.instrument, time: state.time });
  return given;
}

export async function showSheet() {
  const mine = ++wanted;
  fillControls();
  $("grid").setAttribute("aria-busy", "true");
  try {
    const found = await ask("sheet", { ...parameters(), size: SIZE });
    if (mine !== wanted) return;
    shown = found;
    fill();
  } finally {
    if (mine === wanted) $("grid").setAttribute("aria-busy", "false");
  }
}

function fillControls() {
  for (const control of document.querySelectorAll("[data-state]")) {
    control.value = state[control.dataset.state] || (control.id === "horizon" ? String(about.horizon ?? "") : "");
  }
  labelConfidence();
  $("seed-choice").hidden = state.order !== "random";
  const all = parameters();
  delete all.page;
  $("sheet-csv").href = address("sheet.csv", all);
}

function caption(entry) {
  const lines = [entry.instrument, entry.time];
  if (entry.return !== undefined) lines.push(`${shown.horizon} bars ${percent(entry.return)}`);
  if (entry.score !== undefined) lines.push(`score ${entry.score === null ? "none" : entry.score.toFixed(4)}`);
  if (entry.similar !== undefined) lines.push(`alike ${entry.similar.toFixed(3)}`);
  if (entry.error !== undefined) lines.push(`error ${entry.error.toFixed(3)}`);
  return lines;
}

/** Zoom at which an image of a sheet is about 130 pixels tall. */
function sheetZoom() {
  return Math.max(1, Math.min(Math.floor(140 / about.height), Math.floor(240 / about.width)));
}

function fill() {
  const [first, count] = [Number(state.page) * SIZE, shown.rows.length];
  const n = (value) => value.toLocaleString("en");
  let text = count ? `${n(first + 1)} to ${n(first + count)} of ${n(shown.total)} windows` : "No window is left by these filters.";
  if (shown.listed < shown.total) text += `, of which the first ${n(shown.listed)} are listed`;
  if (state.order === "similar") text += `; like ${state.instrument} ${state.time}, earlier and of other instruments`;
  $("total").textContent = shown.note ? `${text}. ${shown.note}` : text;
  $("page").textContent = String(Number(state.page) + 1);
  $("page-back").disabled = first === 0;
  $("page-on").disabled = first + count >= shown.listed;
  const zoom = sheetZoom();
  const width = Math.max(104, about.width * zoom);
  const grid = $("grid");
  grid.style.gridTemplateColumns = `repeat(auto-fill, ${width}px)`;
  grid.replaceChildren(...shown.rows.map((entry) => {
    const button = document.createElement("button");
    button.type = "button";
    const lines = caption(entry);
    button.append(picture(entry.image, zoom, ""));
    lines.forEach((line, i) => {
      const span = document.createElement("span");
      span.textContent = line;
      span.title = line;
      span.className = ["name", "when"][i] ?? "";
      button.append(span);
    });
    button.addEventListener("click", () => opened(entry.instrument, entry.time));
    return button;
  }));
  say($("total").textContent);
}

/** Move the focus through the grid, as the arrow keys say. */
export function step(key) {
  const cells = [...$("grid").children];
  if (!cells.length) return;
  const columns = getComputedStyle($("grid")).gridTemplateColumns.split(" ").length;
  const at = cells.indexOf(document.activeElement);
  const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
  const next = at < 0 ? 0 : at + by;
  if (next >= 0 && next < cells.length) cells[next].focus();
}

/** The grid as one picture, with its captions. */
function drawn() {
  const zoom = sheetZoom();
  const [gap, leading] = [16, 15];
  const width = Math.max(104, about.width * zoom);
  const lines = Math.max(0, ...shown.rows.map((entry) => caption(entry).length));
  const tall = about.height * zoom + 6 + lines * leading;
  const columns = Math.max(1, Math.min(shown.rows.length, 8));
  const canvas = document.createElement("canvas");
  canvas.width = columns * (width + gap) + gap;
  canvas.height = Math.ceil(shown.rows.length / columns) * (tall + gap) + gap;
  const g = canvas.getContext("2d");
  const style = getComputedStyle(document.body);
  g.fillStyle = style.backgroundColor;
  g.fillRect(0, 0, canvas.width, canvas.height);
  g.imageSmoothingEnabled = false;
  g.textBaseline = "top";
  shown.rows.forEach((entry, i) => {
    const [x, y] = [gap + (i % columns) * (width + gap), gap + Math.floor(i / columns) * (tall + gap)];
    g.drawImage(picture(entry.image, 1, ""), x, y, about.width * zoom, about.height * zoom);
    caption(entry).forEach((line, k) => {
      g.font = `${k === 0 ? "600 " : ""}12px ${style.fontFamily}`;
      g.fillStyle = style.color;
      g.fillText(line, x, y + about.height * zoom + 6 + k * leading, width);
    });
  });
  return canvas;
}
