// One window: its bars, its exact pixels, what came after it, what a model says, and the same bars by another spec.

import { Chart, short } from "./chart.js";
import { heat, picture, save } from "./pixels.js";
import { SPEC_FIELDS, address, ask, attempt, change, chosen, percent, say, state } from "./state.js";

const $ = (id) => document.getElementById(id);
const SIDES = ["right", "left", "down", "up"];
const LARGEST_ZOOM = 12;
const PAUSE = 200;
const MOST_PENDING = 8;

let about;
let chart;
let shown = null;
let explained = null;
let busy = false;
const pending = [];
let wanted = 0;
let pause = 0;
let latest = "right";

export function startWindow(facts) {
  about = facts;
  chart = new Chart($("chart"), describeBar);
  for (const side of SIDES) $(side).addEventListener("click", () => move(side));
  $("span").addEventListener("change", () => {
    change({ span: $("span").value });
    attempt(showWindow);
  });
  $("time").addEventListener("change", () => {
    change({ time: $("time").value.trim() });
    attempt(showWindow);
  });
  $("smaller").addEventListener("click", () => zoom(-1));
  $("larger").addEventListener("click", () => zoom(1));
  $("map").addEventListener("change", () => {
    change({ map: $("map").value });
    drawPicture();
  });
  $("map-choice").hidden = about.model === null;
  $("chart-png").addEventListener("click", () => save($("chart"), `chart-${shown.time.slice(0, 10)}.png`));
  startSearch();
  startSpec();
}

/** Show the window that the state names. */
export async function showWindow(since = performance.now()) {
  const turn = ++wanted;
  const found = await ask("window", parameters(state.instrument, state.time));
  if (turn !== wanted) return;
  shown = found;
  explained = null;
  change({ instrument: found.instrument, time: found.time });
  fill();
  if (found.partial) {
    // The index is being read: the image is there before its neighbours are known.
    await showWindow(since);
    return;
  }
  requestAnimationFrame(() => {
    performance.measure("move", { start: since, end: performance.now() });
    lookAhead(turn);
  });
  clearTimeout(pause);
  // A model takes longer than a key held down leaves: it is asked about the window at which one stays.
  if (about.model !== null) pause = setTimeout(() => attempt(() => explain(turn)), PAUSE);
}

/** Ask for the neighbours one after the other, and draw by another spec: neither holds up the next move. */
async function lookAhead(turn) {
  redraw();
  for (const side of [...SIDES].sort((a, b) => (b === latest) - (a === latest))) {
    const next = neighbour(side);
    if (turn !== wanted) return;
    if (next) await ask("window", parameters(...next)).catch(() => {});
  }
}

function parameters(instrument, time) {
  const given = { instrument, time, span: state.span };
  return Object.fromEntries(Object.entries(given).filter(([, value]) => value !== ""));
}

function neighbour(side) {
  if (shown === null || shown[side] === null) return null;
  return side === "left" || side === "right" ? [shown.instrument, shown[side]] : [shown[side], shown.time];
}

/** Go to the window before or after, or to the instrument before or after at the same time. */
export async function move(side) {
  latest = side;
  if (busy) {
    // Keys that come while one is answered wait their turn; a key held down is not to run on for long.
    if (pending.length < MOST_PENDING) pending.push(side);
    return;
  }
  const next = neighbour(side);
  if (next === null) {
    pending.length = 0;
    return;
  }
  busy = true;
  const since = performance.now();
  change({ instrument: next[0], time: next[1] });
  await attempt(() => showWindow(since));
  busy = false;
  if (pending.length) move(pending.shift());
}

function fill() {
  const { bars } = shown;
  $("instrument").value = shown.instrument;
  $("time").value = shown.time;
  $("span").value = state.span;
  const n = (value) => value.toLocaleString("en");
  $("ordinal").textContent = shown.partial ? "reading the index" : `window ${n(shown.number)} of ${n(shown.count)}`;
  for (const side of SIDES) $(side).disabled = shown[side] === null;
  document.title = `${shown.instrument} ${shown.time} · pricepix`;
  chart.show(bars);
  const notes = [];
  if (shown.asked) notes.push(`No window ends at ${shown.asked}: this is the nearest.`);
  if (bars?.note) notes.push(bars.note);
  $("bars-note").textContent = notes.join(" ");
  $("bars-note").hidden = notes.length === 0;
  $("chart").setAttribute("aria-label", chartLabel());
  drawPicture();
  fillReturns();
  fillScores();
  const place = { instrument: shown.instrument, time: shown.time };
  $("image-png").href = address("image.png", { ...place, zoom: zoomOf(shown.image) });
  $("bars-csv").href = address("bars.csv", place);
  $("bars-csv").hidden = bars === null;
  $("chart-png").hidden = bars === null;
  say(`${shown.instrument}, ${shown.time}`);
}

function chartLabel() {
  const { bars, instrument, time } = shown;
  if (!bars?.time.length) return `${instrument}: no bars`;
  const close = bars.close[bars.last];
  return `${instrument}, ${bars.time.length} bars from ${bars.time[0]} to ${bars.time.at(-1)}; the window ends at ${time}`
    + (close === null ? "" : ` with a close of ${close}`);
}

function drawPicture() {
  const { image } = shown;
  const size = zoomOf(image);
  const label = `Image of ${shown.instrument} to ${shown.time}, ${image.height} by ${image.width} pixels`;
  const canvases = [picture(image, size, label)];
  const map = explained?.maps[state.map];
  if (map) canvases.push(heat(map, image.width, image.height, size));
  $("picture").replaceChildren(...canvases);
  $("zoom").textContent = `${size}×`;
  $("smaller").disabled = size <= 1;
  $("larger").disabled = size >= LARGEST_ZOOM;
  $("map").value = state.map;
}

/** The zoom that was chosen, or the largest whole one at which an image fits beside the chart. */
function zoomOf(image, chosenToo = true) {
  if (chosenToo && state.zoom) return Number(state.zoom);
  const room = document.querySelector(".side").clientWidth;
  return Math.max(1, Math.min(Math.floor(room / image.width), Math.floor(340 / image.height)));
}

function zoom(by) {
  change({ zoom: String(Math.min(LARGEST_ZOOM, Math.max(1, zoomOf(shown.image) + by))) });
  drawPicture();
  redraw();
  $("image-png").href = address("image.png", { instrument: shown.instrument, time: shown.time, zoom: zoomOf(shown.image) });
}

function row(cells, kinds = []) {
  const line = document.createElement("tr");
  cells.forEach((text, i) => {
    const cell = document.createElement(i === 0 ? "th" : "td");
    if (i === 0) cell.scope = "row";
    cell.textContent = text;
    if (kinds[i]) cell.className = kinds[i];
    line.append(cell);
  });
  return line;
}

function fillReturns() {
  const rows = shown.returns.map((r) => row([r.horizon, percent(r.value), r.exit ?? "not yet"], ["", r.class ?? ""]));
  const later = about.delay ? `, entered ${about.delay} bar${about.delay > 1 ? "s" : ""} after the window` : "";
  $("returns").caption.textContent = `Forward returns${later}`;
  $("returns").hidden = rows.length === 0;
  $("returns").tBodies[0].replaceChildren(...rows);
}

function fillScores() {
  const number = (value) => (value === null ? "none" : value.toFixed(4));
  const rows = shown.scores.map((s) => row([s.from, number(s.value)]));
  if (explained) rows.push(row(["an image without a pixel", number(explained.empty)]));
  const rank = shown.scores.every((s) => s.probability) ? "probability of a rise" : "can be ranked only";
  $("scores").caption.textContent = `Score, ${rank}`;
  $("scores").hidden = rows.length === 0;
  $("scores").tBodies[0].replaceChildren(...rows);
}

async function explain(turn) {
  if (about.model === null || !shown.bars?.time.length) return;
  const found = await ask("explain", { instrument: shown.instrument, time: shown.time });
  if (turn !== wanted) return;
  explained = found;
  chart.show(shown.bars, found.occlusion);
  drawPicture();
  fillScores();
}

/** Say the figures of a bar under the chart: of the one pointed at, or the window's last. */
function describeBar(at) {
  const bars = shown?.bars;
  if (!bars?.time.length) {
    $("bar").replaceChildren();
    return;
  }
  const i = at < 0 ? bars.last : at;
  const price = (value) => (value === null ? "n/a" : value.toLocaleString("en", { maximumFractionDigits: 4 }));
  const facts = [["", bars.time[i]], ...["open", "high", "low", "close"].map((name) => [name, price(bars[name][i])])];
  facts.push(["volume", short(bars.volume[i])]);
  Object.entries(bars.averages).forEach(([window, values], k) => {
    facts.push([`average ${window}`, price(values[i]), k % 2 ? "second" : "first"]);
  });
  const part = explained?.occlusion[i - bars.last + explained.occlusion.length - 1] ?? null;
  if (part !== null) facts.push(["in the score", `${part >= 0 ? "+" : "−"}${Math.abs(part).toPrecision(2)}`]);
  $("bar").replaceChildren(...facts.map(([name, value, kind = ""]) => {
    const fact = document.createElement("span");
    const figure = document.createElement("b");
    fact.className = kind;
    figure.textContent = value;
    fact.append(name ? `${name} ` : "", figure);
    return fact;
  }));
}

// ---- finding an instrument

function startSearch() {
  const [input, list] = [$("instrument"), $("found")];
  let names = [];
  let active = -1;
  let turn = 0;

  const close = () => {
    list.hidden = true;
    active = -1;
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
  };
  const mark = (at) => {
    active = at;
    [...list.children].forEach((item, i) => item.setAttribute("aria-selected", String(i === at)));
    if (at >= 0) {
      input.setAttribute("aria-activedescendant", list.children[at].id);
      list.children[at].scrollIntoView({ block: "nearest" });
    }
  };
  const pick = (name) => {
    close();
    input.blur();
    change({ instrument: name });
    attempt(showWindow);
  };
  const search = async () => {
    const mine = ++turn;
    const answer = await ask("instruments", { q: input.value.trim() });
    if (mine !== turn || document.activeElement !== input) return;
    names = answer.found.map((entry) => entry.instrument);
    const items = answer.found.map((entry, i) => {
      const item = document.createElement("li");
      item.id = `found-${i}`;
      item.setAttribute("role", "option");
      const [name, count] = [document.createElement("span"), document.createElement("span")];
      name.textContent = entry.instrument;
      count.textContent = entry.windows.toLocaleString("en");
      count.className = "soft";
      item.append(name, count);
      item.addEventListener("pointerdown", (event) => {
        event.preventDefault();
        pick(entry.instrument);
      });
      return item;
    });
    const more = answer.total - names.length;
    if (more > 0 || !names.length) {
      const item = document.createElement("li");
      item.className = "none";
      item.textContent = names.length ? `and ${more.toLocaleString("en")} more` : "no instrument has such a name";
      items.push(item);
    }
    list.replaceChildren(...items);
    list.hidden = false;
    input.setAttribute("aria-expanded", "true");
    mark(names.length ? 0 : -1);
  };
  input.addEventListener("focus", () => input.select());
  input.addEventListener("input", () => attempt(search));
  input.addEventListener("blur", () => {
    close();
    if (shown) input.value = shown.instrument;
  });
  input.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (list.hidden) attempt(search);
      else if (names.length) mark((active + (event.key === "ArrowDown" ? 1 : names.length - 1)) % names.length);
    } else if (event.key === "Enter") {
      event.preventDefault();
      pick(names.includes(input.value.trim()) || active < 0 ? input.value.trim() : names[active]);
    } else if (event.key === "Escape") {
      close();
      input.blur();
    }
  });
}

// ---- the same bars by another spec

const field = (name) => document.querySelector(`[data-field="${name}"]`);
let drawing = false;
let again = false;

function startSpec() {
  $("spec").hidden = !about.bars;
  for (const [name, choices] of [["style", about.styles], ["chart", about.charts]]) {
    field(name).replaceChildren(...choices.map((choice) => new Option(choice)));
  }
  for (const name of Object.keys(about.presets)) $("preset").append(new Option(name));
  $("lookback").max = String(Math.max(120, about.spec.lookback));
  $("height").max = String(Math.max(192, about.height));
  $("spec-form").addEventListener("submit", (event) => event.preventDefault());
  for (const name of SPEC_FIELDS) {
    field(name).addEventListener(name === "ma" ? "change" : "input", () => {
      $("preset").value = "";
      set(name, read(name));
      redraw();
    });
  }
  $("preset").addEventListener("change", () => {
    const spec = about.presets[$("preset").value];
    if (!spec) return;
    for (const name of SPEC_FIELDS) set(name, write(spec, name));
    redraw();
  });
  $("spec-reset").addEventListener("click", () => {
    $("preset").value = "";
    change(Object.fromEntries(SPEC_FIELDS.map((name) => [name, ""])));
    redraw();
  });
  $("spec").addEventListener("toggle", () => redraw());
}

/** A field of a spec as the address has it. */
function write(spec, name) {
  if (name === "volume") return spec.volume ? "1" : "0";
  if (name === "ma") return spec.ma.join(",") || "none";
  return String(spec[name]);
}

function read(name) {
  if (name === "volume") return field(name).checked ? "1" : "0";
  if (name === "ma") return field(name).value.replaceAll(" ", "") || "none";
  return field(name).value;
}

function set(name, value) {
  // What is as in the images is not in the address.
  change({ [name]: value === write(about.spec, name) ? "" : value });
}

function fillSpec() {
  for (const name of SPEC_FIELDS) {
    const value = state[name] || write(about.spec, name);
    if (name === "volume") field(name).checked = value === "1";
    else field(name).value = name === "ma" && value === "none" ? "" : value;
    const label = document.querySelector(`output[for="${field(name).id}"]`);
    if (label) label.textContent = value;
  }
}

/** Draw the window by the spec of the sliders; while one drawing is under way only the latest wish is kept. */
async function redraw() {
  if (!about.bars || !shown) return;
  fillSpec();
  if (!$("spec").open) return;
  if (drawing) {
    again = true;
    return;
  }
  drawing = true;
  try {
    do {
      again = false;
      await drawOnce();
    } while (again);
  } finally {
    drawing = false;
  }
}

async function drawOnce() {
  const { instrument, time } = shown;
  try {
    const found = await ask("redraw", { instrument, time, ...chosen(SPEC_FIELDS) });
    const label = `The window drawn with ${found.code}`;
    $("redrawn").replaceChildren(picture(found.image, zoomOf(found.image, false), label));
    $("code").textContent = found.code;
    const { height, width } = found.image;
    $("redraw-note").textContent = `${height} × ${width} pixels${Object.keys(found.changed).length ? "" : ", as in the images"}`;
  } catch (error) {
    $("redrawn").replaceChildren();
    $("code").textContent = "";
    $("redraw-note").textContent = error.message;
  }
}
