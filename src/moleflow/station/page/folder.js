// Watching a folder of this computer: what appears in it is inspected once, when it is whole.
import { pause } from "./dom.js";
import { take } from "./inbox.js";
import { t } from "./words.js";

const EVERY = 1000; // milliseconds
const IMAGE = /\.(png|jpe?g|bmp|tiff?|webp|gif|pgm|ppm)$/i;

/** Event "change" when one of the fields does. */
export const folder = new EventTarget();
Object.assign(folder, { name: null, taken: 0, before: [], error: null });

let stopper = null;

const tell = () => folder.dispatchEvent(new Event("change"));

export function canWatch() {
  return "showDirectoryPicker" in window;
}

/** Asks for a folder and watches it until `stopWatching`; what is in it already waits for `takeBefore`. */
export async function watch() {
  const handle = await window.showDirectoryPicker({ id: "moleflow-watch", mode: "read" });
  stopWatching();
  stopper = new AbortController();
  Object.assign(folder, { name: handle.name, taken: 0, before: [], error: null });
  follow(handle, stopper.signal);
}

export function stopWatching() {
  stopper?.abort();
  stopper = null;
  Object.assign(folder, { name: null, before: [] });
  tell();
}

/** Inspects what was in the folder when the watch began. */
export function takeBefore() {
  const files = folder.before.splice(0);
  folder.taken += files.length;
  take(files);
  tell();
}

async function follow(handle, signal) {
  const seen = new Map(); // by name: {mark, old, done}; done only once it was taken
  let first = true;
  let failing = new Set();
  while (!signal.aborted) {
    try {
      const { ready, missed } = await lookThrough(handle, seen, first);
      if (signal.aborted) return;
      hand(ready);
      const [name] = [...missed.keys()].filter((one) => failing.has(one)); // one that was just moved away is gone now
      folder.error = name === undefined ? null : t("folder.unreadable", { name, why: missed.get(name) });
      failing = new Set(missed.keys());
      first = false;
    } catch (error) {
      if (first) seen.clear();
      folder.error = error.message; // a share that is away may come back
    }
    tell();
    await pause(EVERY, signal);
  }
}

/** Gives what is whole to the inspection; what was there before the watch waits to be asked for. */
function hand(ready) {
  for (const { known } of ready) known.done = true;
  const of = (old) => ready.filter(({ known }) => known.old === old).map(({ file }) => file);
  folder.before.push(...of(true));
  const fresh = of(false);
  folder.before = folder.before.filter(({ name }) => !fresh.some((file) => file.name === name)); // written anew
  folder.taken += fresh.length;
  if (fresh.length) take(fresh);
}

/** Files that have stood still since the last look, for half-written ones wait; and why others could not be read. */
async function lookThrough(handle, seen, first) {
  const ready = [];
  const missed = new Map();
  for await (const [name, entry] of handle.entries()) {
    if (entry.kind !== "file" || !IMAGE.test(name)) continue;
    try {
      const file = await entry.getFile();
      const known = noted(seen, name, `${file.size} ${file.lastModified}`, first);
      if (!known.done && (known.still || first) && file.size > 0) ready.push({ file, known });
    } catch (error) {
      // Another file of the folder is none the worse for it, and this one is tried again at the next look.
      if (first) seen.set(name, { mark: null, old: true, done: false });
      missed.set(name, error.message);
    }
  }
  ready.sort(({ file: a }, { file: b }) => a.lastModified - b.lastModified || a.name.localeCompare(b.name));
  return { ready, missed };
}

/** What is known of a file now: `still` says that it is as it was at the last look. */
function noted(seen, name, mark, first) {
  const before = seen.get(name);
  const known = before?.mark === mark ? before : { mark, old: first || before?.mark === null, done: false };
  known.still = known === before;
  seen.set(name, known);
  return known;
}
