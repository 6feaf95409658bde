// What all views share: who is at the page, the line and its scale; asked again while the page is open.
import { ask, connection, isReachable, LOOKING } from "./api.js";
import { pause } from "./dom.js";

const ORDER = ["inspect", "teach", "admin"];
const EVERY = 5000; // milliseconds between two looks
const WHILE_LOST = 1500;

export const session = { me: null, line: null, scale: null };

/** Events "line" (changed), "products" (their list changed), "me", "tick" (after every look). */
export const news = new EventTarget();

/** Whether the role at hand includes `role`. */
export function may(role) {
  return session.me !== null && ORDER.indexOf(session.me.role) >= ORDER.indexOf(role);
}

export async function begin() {
  session.me = await ask("me");
  [session.line, session.scale] = await Promise.all([ask("line"), ask("scale")]);
  news.dispatchEvent(new Event("me"));
  news.dispatchEvent(new Event("line"));
}

/** Looks at the line once more, after something was changed or as time goes by. */
export async function look() {
  const before = JSON.stringify(session.line?.products);
  session.line = await ask("line", { patience: LOOKING });
  news.dispatchEvent(new Event("line"));
  if (JSON.stringify(session.line.products) !== before) news.dispatchEvent(new Event("products"));
}

/** Never ends: a lost connection is found again by the same look. */
export async function keepLooking() {
  for (;;) {
    await pause(isReachable() ? EVERY : WHILE_LOST);
    if (document.hidden && isReachable()) continue;
    try {
      await look();
      news.dispatchEvent(new Event("tick"));
    } catch {
      // api.js says so: the banner stands until a look succeeds.
    }
  }
}

/** Resolves when the service answers. */
export function found(signal) {
  if (isReachable()) return Promise.resolve();
  return new Promise((done) => {
    connection.addEventListener("found", done, { once: true, signal });
    signal?.addEventListener("abort", done, { once: true });
  });
}
