// Watching a folder of this computer: what appears in it is inspected once, when it is whole.
import { pause } from "./dom.js";
import { take } from "./inbox.js";

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
  const seen = new Map(); // by name: {mark, done}
  let first = true;
  while (!signal.aborted) {
    try {
      const ready = await changed(handle, seen, first);
      if (signal.aborted) return;
      if (first) folder.before = ready;
      else if (ready.length) take(ready);
      if (!first) folder.taken += ready.length;
      folder.error = null;
      first = false;
    } catch (error) {
      folder.error = error.message; // a share that is away may come back
    }
    tell();
    await pause(EVERY, signal);
  }
}

/** Files that are new or changed and have stood still since the last look: half-written ones wait. */
async function changed(handle, seen, first) {
  const ready = [];
  for await (const [name, entry] of handle.entries()) {
    if (entry.kind !== "file" || !IMAGE.test(name)) continue;
    const file = await entry.getFile();
    const mark = `${file.size} ${file.lastModified}`;
    const known = seen.get(name);
    if (known?.mark !== mark) {
      seen.set(name, { mark, done: first });
      if (first) ready.push(file);
    } else if (!known.done && file.size > 0) {
      known.done = true;
      ready.push(file);
    }
  }
  return ready.sort((a, b) => a.lastModified - b.lastModified || a.name.localeCompare(b.name));
}
