// What is shown: it all stands in the address behind "#", so that a link leads to the same view.

export const DEFAULTS = Object.freeze({
  view: "window", instrument: "", time: "", span: "120", zoom: "", map: "none",
  order: "time", horizon: "", class: "any", from: "", to: "", instruments: "", confidence: "0.5", seed: "0", page: "0",
  lookback: "", height: "", aggregate: "", style: "", chart: "", ma: "", volume: "",
});

export const SPEC_FIELDS = Object.freeze(["lookback", "height", "aggregate", "style", "chart", "ma", "volume"]);
export const SHEET_FIELDS = Object.freeze(
  ["order", "horizon", "class", "from", "to", "instruments", "confidence", "seed", "page"],
);

export const state = { ...DEFAULTS };

/** Read the state out of the address; what it does not name is as by default. */
export function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const [name, value] of Object.entries(DEFAULTS)) state[name] = given.get(name) ?? value;
}

/** Change the state and the address; `keep` leaves the view before it to the Back button. */
export function change(changes, keep = false) {
  Object.assign(state, changes);
  const shown = new URLSearchParams();
  for (const [name, value] of Object.entries(state)) if (value !== DEFAULTS[name]) shown.set(name, value);
  history[keep ? "pushState" : "replaceState"](null, "", `#${shown}`);
}

/** The parameters of a request: those fields of the state that differ from what they are by default. */
export function chosen(fields) {
  return Object.fromEntries(fields.filter((name) => state[name] !== DEFAULTS[name]).map((name) => [name, state[name]]));
}

export function address(path, parameters = {}) {
  const query = new URLSearchParams(parameters);
  return `api/${path}${query.size ? `?${query}` : ""}`;
}

const KEPT = 64;
const answers = new Map();

/** Ask the server; an answer is kept, so that the windows around the one shown are there before they are asked for. */
export function ask(path, parameters = {}) {
  const key = address(path, parameters);
  let answer = answers.get(key);
  if (answer === undefined) {
    answer = fetchJson(key);
    answers.set(key, answer);
    answer.catch(() => answers.delete(key));
    if (answers.size > KEPT) answers.delete(answers.keys().next().value);
  }
  return answer;
}

async function fetchJson(key) {
  let response;
  try {
    response = await fetch(key);
  } catch {
    throw new Error("The explorer does not answer: it was closed. Start it again and open its new address.");
  }
  const found = await response.json();
  if (!response.ok) throw new Error(found.error ?? `the server answered ${response.status}`);
  return found;
}

const $ = (id) => document.getElementById(id);

/** Run a step of the page; what goes wrong is shown, and told to screen readers. */
export async function attempt(step) {
  try {
    await step();
    $("error").hidden = true;
  } catch (error) {
    $("error").textContent = error.message;
    $("error").hidden = false;
  }
}

/** Let screen readers say what has changed. */
export function say(text) {
  $("said").textContent = text;
}

export const percent = (value) => (value === null || value === undefined ? "n/a"
  : `${value < 0 ? "−" : "+"}${Math.abs(100 * value).toFixed(2)} %`);

export function download(url, name) {
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
}
