// How photographs come into the page: dropped (folders too), pasted, or chosen.
import { el } from "./dom.js";

/** Files of a drop, those in dropped folders included. */
async function dropped(transfer) {
  // The items are gone after the first await: entries are taken at once.
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files];
  return (await Promise.all(entries.map(inside))).flat();
}

async function inside(entry) {
  if (entry.isFile) return [await new Promise((done, failed) => entry.file(done, failed))];
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((done, failed) => reader.readEntries(done, failed));
    if (!some.length) break; // it gives a hundred at a time
    found.push(...some);
  }
  return (await Promise.all(found.filter(({ name }) => !name.startsWith(".")).map(inside))).flat();
}

/** `files(list)` is told of what is dropped anywhere on the page while `signal` lasts. */
export function onDrop(files, signal) {
  const root = document.documentElement;
  let depth = 0;
  const carries = (event) => event.dataTransfer?.types.includes("Files");
  const listen = (name, act) => document.addEventListener(name, act, { signal });
  listen("dragenter", (event) => {
    if (carries(event)) root.classList.toggle("dropping", (depth += 1) > 0);
  });
  listen("dragleave", (event) => {
    if (carries(event)) root.classList.toggle("dropping", (depth -= 1) > 0);
  });
  listen("dragover", (event) => {
    if (carries(event)) event.preventDefault();
  });
  listen("drop", async (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    depth = 0;
    root.classList.remove("dropping");
    const given = await dropped(event.dataTransfer);
    if (given.length) files(given);
  });
  signal.addEventListener("abort", () => root.classList.remove("dropping"));
}

/** `files(list)` is told of pictures that are pasted while `signal` lasts. */
export function onPaste(files, signal) {
  document.addEventListener("paste", (event) => {
    const given = [...(event.clipboardData?.files ?? [])].filter(({ type }) => type.startsWith("image/"));
    if (!given.length) return;
    event.preventDefault();
    files(given.map(renamed));
  }, { signal });
}

/** The clipboard calls everything image.png: a time tells pictures apart. */
function renamed(file) {
  if (file.name !== "image.png") return file;
  const name = `pasted-${new Date().toISOString().replace(/[:.]/g, "-")}.png`;
  return new File([file], name, { type: file.type });
}

/** A hidden file input; `.open()` shows the browser's own dialog. */
export function picker(files, { id }) {
  const input = el("input", { type: "file", multiple: true, accept: "image/*", id, class: "hidden", tabIndex: -1 });
  input.setAttribute("aria-hidden", "true");
  input.addEventListener("change", () => {
    const given = [...input.files];
    input.value = ""; // the same file may be chosen again
    if (given.length) files(given);
  });
  return { element: input, open: () => input.click() };
}
