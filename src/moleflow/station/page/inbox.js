// Images on their way to an inspection, and what came back. It goes on while another view is open.
import { ask, insistently, LOOKING, query, send } from "./api.js";
import { remember, remembered } from "./dom.js";
import { t } from "./words.js";

const AT_ONCE = 4; // images on their way together: a browser keeps six connections, and the looks need theirs
const KEPT = 60; // results in the strip
const SEEN = 24;

/** Events: "queue" (something waits or went), "verdict" (detail: the result to show), "recent", "anew". */
export const inbox = new EventTarget();
Object.assign(inbox, { waiting: [], sending: [], recent: [], shown: null, trouble: null });
Object.assign(inbox, { following: remembered("follow", "off") === "on", task: remembered("product", "") });

let pumping = false;
let unrecorded = 0; // failures, and what a full disk left no room for
let looked = false;
let seen = new Set(); // numbers of inspections that were met
let newest = 0; // the highest of them

const tell = (name, detail) => inbox.dispatchEvent(new CustomEvent(name, { detail }));

/** Whether what others have inspected is shown; kept for the next time. */
export function follow(on) {
  inbox.following = on;
  remember("follow", on ? "on" : "off");
}

/** Which product the images show, "" where the line finds it; kept for the next time. */
export function giveProduct(name) {
  inbox.task = name;
  remember("product", name);
}

/** How many images are not inspected yet. */
export function unfinished() {
  return inbox.waiting.length + inbox.sending.length;
}

/** Puts files in the queue. */
export function take(files) {
  inbox.waiting.push(...files);
  tell("queue");
  pump();
}

export function dropWaiting() {
  inbox.waiting.length = 0;
  tell("queue");
}

async function pump() {
  if (pumping) return;
  pumping = true;
  try {
    while (inbox.waiting.length) {
      inbox.sending = inbox.waiting.splice(0, AT_ONCE);
      tell("queue");
      settle(await Promise.all(inbox.sending.map(inspected)));
    }
  } finally {
    pumping = false;
    inbox.sending = [];
    inbox.trouble = null;
    tell("queue");
  }
}

/** What the station says of an image, or why it says nothing. */
async function inspected(file) {
  try {
    const form = await formOf(file);
    const { results } = await insistently(() => send("inspections", form), { waiting: troubled });
    return results[0];
  } catch ({ code, message, lang }) {
    return { source: file.name, time: new Date().toISOString(), error: { code, message, lang } };
  }
}

function troubled(error) {
  inbox.trouble = error.message;
  tell("queue");
}

/** The same at every try: where only the answer was lost, the station knows the image again by its key. */
async function formOf(file) {
  const form = new FormData();
  form.append("images", new Blob([await contentOf(file)], { type: file.type }), file.name);
  form.append("key", newKey());
  if (inbox.task) form.append("task", inbox.task);
  return form;
}

/** Bytes of a file, read once: it may be moved, or written anew, before it is sent again. */
async function contentOf(file) {
  try {
    return await file.arrayBuffer();
  } catch {
    throw new Error(t("queue.unreadable"));
  }
}

function newKey() {
  if (crypto.randomUUID) return crypto.randomUUID(); // only where the page is local or on HTTPS
  return [...crypto.getRandomValues(new Uint8Array(16))].map((one) => one.toString(16).padStart(2, "0")).join("");
}

/** Of several at once the last that is no good part is shown: it must not be passed over. */
function settle(results) {
  inbox.trouble = null;
  const items = results.map((result) => (result.id ? result : { ...result, id: `unrecorded-${(unrecorded += 1)}` }));
  add(items);
  display(items.findLast((item) => item.status !== "good") ?? items.at(-1));
}

function add(items) {
  for (const { id } of items) if (Number.isInteger(id)) seen.add(id);
  newest = Math.max(newest, ...seen);
  const there = new Set(inbox.recent.map((item) => item.id));
  const fresh = items.filter((item) => !there.has(item.id)).reverse();
  // Newest first by their numbers, for a clock may be put back: what others had inspected may come in between.
  inbox.recent = [...fresh, ...inbox.recent].sort((one, other) => placeOf(other) - placeOf(one)).slice(0, KEPT);
  tell("recent");
}

/** Where an item stands: by its number, and one without behind all that came before it. */
function placeOf(item) {
  item.place ??= Number.isInteger(item.id) ? item.id : newest + 0.5;
  return item.place;
}

/** Shows a result: a new one, or one chosen from the strip. */
export function display(item, { chosen = false } = {}) {
  inbox.shown = item;
  tell("verdict", { item, chosen });
}

/** Another view or person changed an inspection. */
export function replace(inspection) {
  inbox.recent = inbox.recent.map((item) => (item.id === inspection.id ? inspection : item));
  if (inbox.shown?.id === inspection.id) inbox.shown = inspection;
  tell("recent");
}

/** What others had inspected meanwhile; shown at once when the page follows the station. */
export async function lookForNew(signal) {
  const before = newest;
  const { items } = await ask(`inspections${query({ limit: SEEN })}`, { signal, patience: LOOKING });
  if ((items[0]?.id ?? 0) < before) beginAnew();
  const fresh = items.filter(({ id }) => !seen.has(id)).reverse();
  const first = !looked;
  looked = true;
  if (!fresh.length) return;
  add(fresh);
  seen = new Set([...seen].filter((id) => id >= items.at(-1).id)); // no look finds older ones
  if (!first && inbox.following) display(fresh.findLast((item) => item.status !== "good") ?? fresh.at(-1));
}

/** Numbers that went back are another history's: a station was restored, or is another. Nothing here is of it. */
function beginAnew() {
  seen.clear();
  [newest, looked] = [0, false];
  Object.assign(inbox, { recent: [], shown: null });
  tell("recent");
  tell("anew");
}
