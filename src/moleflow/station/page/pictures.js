// Pictures of the service: fetched with the token when they come into sight, shown as blobs, and let go.
import { fetchBlob } from "./api.js";
import { el } from "./dom.js";
import { t } from "./words.js";

const AT_ONCE = 4; // so that a gallery does not stand in the way of an inspection
const MARGIN = "300px";

let running = 0;
const queue = [];

const sight = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      sight.unobserve(target);
      queue.push(target);
    }
    next();
  },
  { rootMargin: MARGIN },
);

function next() {
  while (running < AT_ONCE && queue.length) {
    const box = queue.shift();
    if (!box.isConnected) continue;
    running += 1;
    load(box).finally(() => {
      running -= 1;
      next();
    });
  }
}

async function load(box) {
  try {
    await show(box.querySelector("img"), await fetchBlob(box.dataset.path));
    box.classList.add("loaded");
  } catch (error) {
    box.classList.add("gone");
    const sentence = error.status === 404 ? t("picture.gone") : error.message;
    box.append(el("span", { class: "gone-text", text: sentence }));
  }
}

/** Shows a blob in `image`. Its address is revoked as soon as it is decoded: nothing keeps the bytes. */
export async function show(image, blob) {
  const address = URL.createObjectURL(blob);
  image.src = address;
  try {
    await image.decode();
  } finally {
    URL.revokeObjectURL(address);
  }
}

/** A box of a fixed shape in which the picture at `path` appears once it is in sight. */
export function thumbnail(path, alt = "") {
  const box = el("span", { class: "thumb", data: { path } }, el("img", { alt, decoding: "async" }));
  sight.observe(box);
  return box;
}

/** The same of a file at hand. */
export function fileThumbnail(file, alt = "") {
  const image = el("img", { alt, decoding: "async" });
  const box = el("span", { class: "thumb" }, image);
  const begin = new IntersectionObserver(async ([entry]) => {
    if (!entry.isIntersecting) return;
    begin.disconnect();
    try {
      await show(image, file);
      box.classList.add("loaded");
    } catch {
      // A browser decodes fewer kinds of images than the service: its name stands beside it.
      box.classList.add("gone");
      box.append(el("span", { class: "gone-text", text: t("picture.no_preview") }));
    }
  });
  begin.observe(box);
  return box;
}
