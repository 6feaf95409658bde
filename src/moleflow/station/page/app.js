// Begins the page: language, access, the header, and which view the address names.
import { ask, connection, enterToken, hasToken, tokensComeFrom, useToken } from "./api.js";
import { askToken } from "./dialogs.js";
import { announce, button, el, errorPlace, pause, showError } from "./dom.js";
import { folder } from "./folder.js";
import { show as showGallery } from "./gallery.js";
import { tool } from "./icons.js";
import { inbox, unfinished } from "./inbox.js";
import { show as showInspect } from "./inspect.js";
import { show as showInspection } from "./inspection.js";
import { show as showJob } from "./job.js";
import { show as showProduct } from "./product.js";
import { show as showProducts } from "./products.js";
import { said } from "./sentences.js";
import { begin, keepLooking, may, news, session } from "./session.js";
import { help, keys } from "./shortcuts.js";
import { show as showTeach } from "./teach.js";
import { fill, LANGUAGES, preferred, speak, spoken, t } from "./words.js";

const AGAIN = 1500; // milliseconds between two tries to begin
const THEMES = ["auto", "light", "dark"];
const VIEWS = {
  inspect: [showInspect, showInspect],
  history: [showGallery, showInspection],
  products: [showProducts, showProduct],
  teach: [showTeach, showJob],
};

const byId = (id) => document.getElementById(id);
let leaving = new AbortController();
let ready = false;
let here = null;

function routeOf(hash) {
  const [path, search = ""] = hash.replace(/^#\/?/, "").split("?");
  const parts = path.split("/").filter(Boolean).map(decoded);
  return { parts: parts[0] in VIEWS ? parts : ["inspect"], query: new URLSearchParams(search), hash };
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

/** Shows what the address names; `moved`: a person went there, so the focus goes along. */
function navigate({ moved = true } = {}) {
  if (!ready) return;
  leaving.abort();
  leaving = new AbortController();
  const route = { ...routeOf(location.hash), previous: here };
  here = location.hash;
  const [view, ...rest] = route.parts;
  for (const link of byId("views").children) {
    if (link.dataset.view === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const names = [rest[0], t(`nav.${view}`), session.line.name, "MoLE-Flow"];
  document.title = names.filter(Boolean).join(" · ");
  const root = el("div", { class: `view-${view} ${rest.length ? "one" : "all"}` });
  byId("main").replaceChildren(root);
  VIEWS[view][rest.length ? 1 : 0](root, route, leaving.signal);
  if (moved) {
    byId("main").focus({ preventScroll: true });
    scrollTo(0, 0);
  }
}

function drawHeader() {
  fill();
  const other = Object.keys(LANGUAGES).find((tag) => tag !== spoken());
  Object.assign(byId("language"), { textContent: LANGUAGES[other], lang: other });
  const theme = window.moleflowTheme.chosen;
  const label = t(`theme.${theme}`);
  byId("theme").replaceChildren(tool(theme));
  byId("theme").setAttribute("aria-label", label);
  byId("theme").title = label;
  drawAccess();
  drawCounts();
}

function drawAccess() {
  byId("line-name").textContent = session.line?.name ?? "";
  document.querySelector("[data-view=teach]").hidden = session.me !== null && !may("teach");
  const access = byId("access");
  access.hidden = !hasToken();
  if (!session.me) return;
  const role = el("span", { class: "role", text: t(`role.${session.me.role}`) });
  access.replaceChildren(el("span", { text: t("token.leave") }), role);
}

function drawCounts() {
  const waiting = unfinished();
  byId("waiting-count").hidden = waiting < 2;
  byId("waiting-count").textContent = waiting;
}

/** How many lessons wait for a person, at the way to them. */
async function countReviews() {
  if (!may("teach")) return;
  const jobs = await ask("jobs").catch(() => []);
  const n = jobs.filter(({ state }) => state === "review").length;
  byId("job-count").hidden = n === 0;
  byId("job-count").textContent = n;
}

function nextTheme() {
  const { chosen, choose } = window.moleflowTheme;
  choose(THEMES[(THEMES.indexOf(chosen) + 1) % THEMES.length]);
  drawHeader();
  announce(t(`theme.${window.moleflowTheme.chosen}`));
}

async function otherLanguage() {
  const tag = Object.keys(LANGUAGES).find((one) => one !== spoken());
  await speak(tag, { keep: true });
  drawHeader();
  if (connectionState) drawBanner(connectionState);
  navigate({ moved: false });
}

let connectionState = null;

/** What stands above the views while the station is away, or while it lets nobody in. */
function drawBanner(state) {
  connectionState = state;
  const banner = byId("banner");
  banner.hidden = state === null;
  if (state === "lost") banner.replaceChildren(el("span", { class: "pulse" }), t("connection.lost"));
  if (state === "refused") {
    banner.replaceChildren(t("token.needed"), button(t("token.enter"), () => enterToken(null)));
  }
}

/** A line that cannot be read goes on as it was, and that is said. */
function drawProblem() {
  const problem = session.line?.problem;
  if (problem) {
    byId("banner").replaceChildren(said(problem));
    drawBanner("problem");
  } else if (connectionState === "problem") drawBanner(null);
}

function leave() {
  useToken(null);
  location.reload();
}

/** Tries until the service answers: there is nothing to show before. */
async function beginInsistently() {
  for (let wait = AGAIN; ; ) {
    try {
      await begin();
      return;
    } catch (error) {
      wait = Math.max(AGAIN, 1000 * (error.retryAfter ?? 0));
      const place = errorPlace();
      showError(place, error);
      byId("main").replaceChildren(el("div", { class: "starting" }, el("h1", { text: t("start.waiting") }), place));
    }
    await pause(wait);
  }
}

async function start() {
  await speak(preferred());
  tokensComeFrom(askToken);
  drawHeader();
  byId("language").addEventListener("click", otherLanguage);
  byId("theme").addEventListener("click", nextTheme);
  byId("help").addEventListener("click", help);
  byId("access").addEventListener("click", leave);
  byId("skip").addEventListener("click", (event) => (event.preventDefault(), byId("main").focus()));
  connection.addEventListener("lost", () => drawBanner("lost"));
  connection.addEventListener("refused", () => drawBanner("refused"));
  connection.addEventListener("admitted", async () => {
    drawBanner(null);
    if (!ready) return;
    await begin(); // another token may have another role
    navigate({ moved: false });
  });
  connection.addEventListener("found", () => {
    drawBanner(null);
    announce(t("connection.found"));
    // A view that could not be filled is begun anew; one that a person works in stays as it is.
    if (ready && byId("main").querySelector(".error:not([hidden])")) navigate({ moved: false });
  });
  news.addEventListener("me", drawAccess);
  news.addEventListener("line", () => (drawAccess(), drawProblem()));
  news.addEventListener("tick", countReviews);
  inbox.addEventListener("queue", drawCounts);
  addEventListener("hashchange", () => navigate());
  addEventListener("beforeunload", (event) => {
    if (unfinished() || folder.name !== null) event.preventDefault(); // the browser asks: both end with the page
  });
  keys(new AbortController().signal, {
    1: () => (location.hash = "#/inspect"), 2: () => (location.hash = "#/history"),
    3: () => (location.hash = "#/products"), 4: () => (location.hash = "#/teach"),
    "?": () => void help(), t: nextTheme,
  });
  await beginInsistently();
  ready = true;
  navigate({ moved: false });
  countReviews();
  keepLooking();
}

start();
