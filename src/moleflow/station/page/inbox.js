// Images on their way to an inspection, and what came back. It goes on while another view is open.
import { ask, insistently, query, send } from "./api.js";
import { session } from "./session.js";

const AT_ONCE = 8; // images a request, so that the first verdicts of many come soon
const FILLED = 0.9; // of the bytes of a request: the form takes some itself
const KEPT = 60; // results in the strip
const SEEN = 24;
const PASSING = new Set(["busy", "closing", "database"]); // why one image of several could not be judged just then

/** Events: "queue" (something waits or went), "verdict" (detail: the result to show), "recent". */
export const inbox = new EventTarget();
Object.assign(inbox, { waiting: [], sending: [], recent: [], shown: null, following: false, trouble: null, task: "" });

let pumping = false;
let unrecorded = 0; // failures, and what a full disk left no room for
let looked = false;

const tell = (name, detail) => inbox.dispatchEvent(new CustomEvent(name, { detail }));

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
      inbox.sending = inbox.waiting.splice(0, nextBatch());
      tell("queue");
      settle(await inspected(inbox.sending));
    }
  } finally {
    pumping = false;
    inbox.sending = [];
    inbox.trouble = null;
    tell("queue");
  }
}

/** How many of the waiting images one request may bring. */
function nextBatch() {
  const { images, bytes } = session.line.limits;
  let [count, size] = [1, inbox.waiting[0].size];
  while (count < Math.min(AT_ONCE, images, inbox.waiting.length)) {
    size += inbox.waiting[count].size;
    if (size > FILLED * bytes) break;
    count += 1;
  }
  return count;
}

/** The results of a batch; each image alone where the batch was refused as a whole. */
async function inspected(batch) {
  try {
    const answer = await insistently(() => send("inspections", formOf(batch)), { waiting: troubled });
    const { results } = answer;
    for (const [at, { error }] of results.entries()) {
      if (PASSING.has(error?.code)) [results[at]] = await inspected([batch[at]]);
    }
    return results;
  } catch (error) {
    if (batch.length === 1 || error.status === 403) {
      return batch.map((file) => ({ source: file.name, error: { code: error.code, message: error.message } }));
    }
    const results = [];
    for (const file of batch) results.push(...(await inspected([file])));
    return results;
  }
}

function troubled(error) {
  inbox.trouble = error.message;
  tell("queue");
}

function formOf(batch) {
  const form = new FormData();
  for (const file of batch) form.append("images", file, file.name);
  if (inbox.task) form.append("task", inbox.task);
  return form;
}

/** Of several at once the last that is no good part is shown: it must not be passed over. */
function settle(results) {
  inbox.trouble = null;
  const items = results.map((result) => (result.id ? result : { ...result, id: `unrecorded-${(unrecorded += 1)}` }));
  add(items);
  display(items.findLast((item) => item.status !== "good") ?? items.at(-1));
}

function add(items) {
  const known = new Set(inbox.recent.map((item) => item.id));
  const fresh = items.filter((item) => !known.has(item.id)).reverse();
  // Newest first by their times: what others had inspected may come in between.
  inbox.recent = [...fresh, ...inbox.recent].sort((one, other) => when(other) - when(one)).slice(0, KEPT);
  tell("recent");
}

/** When an image was inspected; a failure has the time it came back. */
function when(item) {
  item.at ??= item.time ? Date.parse(item.time) : Date.now();
  return item.at;
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
  const { items } = await ask(`inspections${query({ limit: SEEN })}`, { signal });
  const known = new Set(inbox.recent.map((item) => item.id));
  const fresh = items.filter(({ id }) => !known.has(id)).reverse();
  const first = !looked;
  looked = true;
  if (!fresh.length) return;
  add(fresh);
  if (!first && inbox.following) display(fresh.findLast((item) => item.status !== "good") ?? fresh.at(-1));
}
