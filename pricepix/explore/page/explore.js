// The page: which of its two views is shown, and the keys.

import { showSheet, startSheet, step } from "./sheet.js";
import { ask, attempt, change, readAddress, state } from "./state.js";
import { move, showWindow, startWindow } from "./window.js";

const $ = (id) => document.getElementById(id);
const SIDES = { ArrowLeft: "left", ArrowRight: "right", ArrowUp: "up", ArrowDown: "down" };
async function show() {
  const isSheet = state.view === "sheet";
  $("window").hidden = isSheet;
  $("sheet").hidden = !isSheet;
  $("show-window").setAttribute("aria-pressed", String(!isSheet));
  $("show-sheet").setAttribute("aria-pressed", String(isSheet));
  $("window-keys").hidden = isSheet;
  $("sheet-keys").hidden = !isSheet;
  await (isSheet ? showSheet() : showWindow());
}

function open(changes) {
  change(changes, true);
  scrollTo(0, 0);
  attempt(show);
}

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input, select, textarea")) {
    // A tick or a list keeps its own keys; Escape gives the arrows back to the windows.
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const side = SIDES[event.key];
  if (side && state.view === "window") move(side);
  else if (side) step(event.key);
  else if (event.key === "/" && state.view === "window") $("instrument").focus();
  else if (event.key === "s") open({ view: "sheet" });
  else if (event.key === "w") open({ view: "window" });
  else return;
  event.preventDefault();
}

function fillTop(facts) {
  const n = (value) => value.toLocaleString("en");
  const name = facts.location.split(/[\\/]/).filter(Boolean).at(-1) ?? facts.location;
  const preset = facts.preset ? `${facts.preset}, ` : "";
  const parts = [
    `${name}: ${n(facts.images)} images of ${n(facts.instruments)} instruments, ${preset}${facts.height} × ${facts.width}`,
  ];
  if (facts.factor !== null) parts.push(`scores of ${facts.factor}`);
  if (facts.model !== null) parts.push(`model ${facts.model}`);
  $("about").textContent = parts.join(" · ");
  $("about").title = facts.location;
  $("notes").replaceChildren(...facts.notes.map((note) => {
    const item = document.createElement("li");
    item.textContent = note;
    return item;
  }));
  $("notes").hidden = facts.notes.length === 0;
}

async function start() {
  readAddress();
  const facts = await ask("about");
  fillTop(facts);
  startWindow(facts);
  startSheet(facts, (instrument, time) => open({ view: "window", instrument, time }));
  $("show-window").addEventListener("click", () => open({ view: "window" }));
  $("show-sheet").addEventListener("click", () => open({ view: "sheet" }));
  $("similar").addEventListener("click", () => open({ view: "sheet", order: "similar", page: "0" }));
  addEventListener("keydown", pressed);
  addEventListener("popstate", () => {
    readAddress();
    attempt(show);
  });
  await show();
}

attempt(start);
