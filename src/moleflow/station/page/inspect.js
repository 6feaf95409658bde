// The view beside the belt: ways in, the newest verdict, and a strip of those before it.
import { connection, isReachable, Lost } from "./api.js";
import { announce, button, el, errorPlace, repeat, showError } from "./dom.js";
import { folder, canWatch, stopWatching, takeBefore, watch } from "./folder.js";
import { moment, status } from "./format.js";
import { shape, tool } from "./icons.js";
import { display, dropWaiting, follow, giveProduct, inbox, lookForNew, replace, take, unfinished } from "./inbox.js";
import { onDrop, onPaste, picker } from "./photographs.js";
import { thumbnail } from "./pictures.js";
import { Result } from "./result.js";
import { may, news, session } from "./session.js";
import { keys } from "./shortcuts.js";
import { t } from "./words.js";
import { hasCamera, Webcam } from "./webcam.js";

const FOLLOWING = 1000; // milliseconds between two looks at what others had inspected
const NOT_FOLLOWING = 5000;

export function show(root, _route, signal) {
  const choose = picker(take, { id: "choose-files" });
  const panel = el("div", { class: "camera-place" });
  const camera = cameraOf(panel);
  const place = errorPlace();
  const bar = el("div", { class: "ways" }, choose.element,
    iconButton("photos", t("ways.choose"), () => choose.open(), { class: "primary", errorsIn: place }),
    folderButton(place), cameraButton(camera, place), productChoice(signal));
  const queue = queueLine(signal);
  const list = el("ul", { class: "strip-list" });
  const counts = el("p", { class: "counts" });
  const strip = el("section", { class: "strip", "aria-label": t("strip.heading") },
    el("div", { class: "strip-head" }, el("h2", { text: t("strip.heading") }), counts, followSwitch(),
      el("a", { href: "#/history", text: t("strip.all") })), list);
  const ways = el("div", {}, bar, place, folderLine(signal), queue);
  const result = new Result({ changed: replace, signal, ways: [ways, panel], strip });
  result.viewer.stage.append(emptyHint(choose));
  root.append(el("h1", { class: "hidden", text: t("nav.inspect") }), result.element);

  const present = ({ item, chosen = false }, aloud = !chosen) => {
    const earlier = chosen && item.id !== inbox.recent[0]?.id;
    if (item.error) result.failed(item, { aloud, earlier });
    else result.display(item, { aloud, earlier });
    markShown(list);
    if (!chosen) underWay(result); // of several that came together others may still be on their way
  };
  /** What the band says while nothing is amiss. */
  const stand = () => {
    if (inbox.sending.length) underWay(result, { patience: 0 });
    else if (inbox.shown) present({ item: inbox.shown }, false);
    else if (session.line.products.length) result.ready(t("verdict.ready_means"));
    else result.ready(nothingTaught(), t("verdict.empty"));
  };
  inbox.addEventListener("verdict", ({ detail }) => present(detail), { signal });
  inbox.addEventListener("recent", () => fillStrip(list, counts), { signal });
  inbox.addEventListener("queue", () => underWay(result), { signal });
  inbox.addEventListener("anew", stand, { signal });
  onDrop(take, signal);
  onPaste(take, signal);
  signal.addEventListener("abort", () => camera.stop());
  fillStrip(list, counts);
  stand();
  keys(signal, {
    o: () => choose.open(), c: () => camera.toggle(), h: () => result.viewer.toggle(),
    "[": () => result.viewer.fade(-1), "]": () => result.viewer.fade(1),
    " ": () => camera.capture(), ArrowLeft: () => step(-1), ArrowRight: () => step(1),
  });
  keepLooking(result, stand, signal);
}

/** Looks for what others had inspected. While nobody answers, no verdict stands as if it were of the part at hand. */
function keepLooking(result, stand, signal) {
  const lost = () => result.away(t("verdict.lost"), t("connection.lost_short"));
  const refused = () => result.away(t("verdict.refused"), t("token.needed"));
  const look = async () => {
    if (!isReachable()) return;
    try {
      await lookForNew(signal);
      if (result.isAway) stand();
    } catch (error) {
      if (signal.aborted || error instanceof Lost) return; // the event tells that it is lost
      if (error.status === 401) refused();
      else if (inbox.following) result.away(t("verdict.unserved"), error.message, error.lang);
    }
  };
  connection.addEventListener("lost", lost, { signal });
  connection.addEventListener("refused", refused, { signal });
  connection.addEventListener("found", look, { signal });
  if (!isReachable()) lost();
  repeat(look, () => (inbox.following ? FOLLOWING : NOT_FOLLOWING), signal);
}

function underWay(result, options) {
  const { sending } = inbox;
  if (!sending.length) return result.settled();
  const n = unfinished();
  result.working(n > 1 ? t("queue.waiting", { n }) : sending[0].name, options);
}

function iconButton(icon, label, act, options) {
  const node = button("", act, options);
  node.append(tool(icon), el("span", { text: label }));
  return node;
}

function folderButton(place) {
  const begin = async () => {
    if (!canWatch()) return showError(place, new Error(t("folder.impossible")));
    try {
      await watch();
    } catch (error) {
      if (error.name !== "AbortError") throw error; // the person chose none
    }
  };
  return iconButton("folder", t("ways.folder"), begin, { errorsIn: place });
}

/** The camera's panel, opened and closed in its place. */
function cameraOf(panel) {
  let webcam = null;
  const stop = () => {
    webcam?.stop();
    webcam = null;
    panel.replaceChildren();
  };
  const start = async () => {
    webcam = new Webcam({ left: stop });
    panel.replaceChildren(webcam.element);
    await webcam.start();
  };
  return { stop, toggle: () => (webcam ? stop() : hasCamera() && start()), capture: () => webcam?.capture() ?? false };
}

function cameraButton(camera, place) {
  const begin = () => {
    if (!hasCamera()) return showError(place, new Error(t("camera.impossible")));
    return camera.toggle();
  };
  return iconButton("camera", t("ways.camera"), begin, { errorsIn: place });
}

/** The product, where it is known; else the line finds it. */
function productChoice(signal) {
  const choice = el("select", { id: "known-product", on: { change: () => giveProduct(choice.value) } });
  const fillIn = () => {
    const names = session.line.products.filter(({ quarantined }) => !quarantined).map(({ name }) => name);
    if (!names.includes(inbox.task)) inbox.task = "";
    choice.replaceChildren(el("option", { value: "", text: t("ways.any_product") }),
      ...names.map((name) => el("option", { value: name, text: name, selected: name === inbox.task })));
  };
  news.addEventListener("products", fillIn, { signal });
  fillIn();
  return el("label", { class: "inline" }, el("span", { class: "hidden", text: t("ways.product") }), choice);
}

function followSwitch() {
  const box = el("input", { type: "checkbox", checked: inbox.following, on: { change: () => follow(box.checked) } });
  return el("label", { class: "check", title: t("ways.follow_means") }, box, el("span", { text: t("ways.follow") }));
}

function folderLine(signal) {
  const line = el("div", { class: "state-line", hidden: true });
  const draw = () => {
    line.hidden = folder.name === null;
    if (line.hidden) return;
    const words = t("folder.watched", { name: folder.name, n: folder.taken });
    const before = folder.before.length;
    const held = line.contains(document.activeElement) ? document.activeElement.dataset.does : null;
    line.replaceChildren(tool("folder"), el("span", { text: words }),
      ...(folder.error ? [el("span", { class: "error", text: folder.error })] : []),
      ...(before ? [button(t("folder.before", { n: before }), takeBefore, { class: "small", data: { does: "before" } })] : []),
      button(t("folder.stop"), stopWatching, { class: "small", data: { does: "stop" } }));
    if (held) line.querySelector(`[data-does=${held}]`)?.focus();
  };
  folder.addEventListener("change", draw, { signal });
  draw();
  return line;
}

function queueLine(signal) {
  const words = el("span");
  const drop = button(t("queue.drop"), () => (announce(t("queue.dropped")), dropWaiting()), { class: "small" });
  const line = el("div", { class: "state-line", hidden: true }, words, drop);
  const draw = () => {
    const n = unfinished();
    line.hidden = n < 2 && !inbox.trouble;
    words.textContent = inbox.trouble ? t("queue.trouble", { why: inbox.trouble.replace(/\.$/, ""), n }) : t("queue.waiting", { n });
    drop.hidden = inbox.waiting.length === 0;
  };
  inbox.addEventListener("queue", draw, { signal });
  draw();
  return line;
}

function nothingTaught() {
  const text = t("verdict.nothing_taught");
  return may("teach") ? el("a", { href: "#/teach", text }) : text;
}

function emptyHint(choose) {
  return el("button", { type: "button", class: "empty-hint", on: { click: () => choose.open() } },
    tool("photos"), el("span", { class: "hint-title", text: t("ways.drop") }), el("span", { text: t("ways.drop_more") }));
}

function fillStrip(strip, counts) {
  // What stands there stays there: its picture is not fetched again and it keeps the focus.
  const there = new Map([...strip.children].map((item) => [item.dataset.key, item]));
  const items = inbox.recent.map((item) => there.get(String(item.id)) ?? stripItem(item));
  items.forEach((item, at) => strip.children[at] !== item && strip.insertBefore(item, strip.children[at] ?? null));
  while (strip.children.length > items.length) strip.lastChild.remove();
  markShown(strip);
  const of = (name) => inbox.recent.filter((item) => item.status === name).length;
  const parts = ["good", "defective", "unknown", "drifting"].map((name) => [name, of(name)]).filter(([, n]) => n);
  counts.replaceChildren(...parts.map(([name, n]) =>
    el("span", { class: "tally", data: { status: name } }, shape(name), t("tally", { n, status: status(name) }))));
}

function stripItem(item) {
  const name = item.error ? "failed" : item.status;
  const label = item.error ? `${t("verdict.failed")}, ${item.source}` : `${status(name)}, ${item.task}, ${moment(item.time)}`;
  const picture = item.error || item.recorded === false ? el("span", { class: "thumb gone" }) : thumbnail(`inspections/${item.id}/image?side=256`);
  return el("li", { data: { key: item.id } }, el("button", {
    type: "button", class: "card small-card", "aria-label": label, title: label, data: { id: item.id, status: name },
    on: { click: () => display(item, { chosen: true }) },
  }, picture, el("span", { class: "badge", data: { status: name } }, shape(name), item.error ? t("verdict.failed") : status(name))));
}

function markShown(strip) {
  for (const card of strip.querySelectorAll("[data-id]")) {
    card.setAttribute("aria-current", String(card.dataset.id === String(inbox.shown?.id)));
  }
}

function step(by) {
  const at = inbox.recent.findIndex(({ id }) => id === inbox.shown?.id);
  const item = inbox.recent[at + by];
  if (item) display(item, { chosen: true });
}
