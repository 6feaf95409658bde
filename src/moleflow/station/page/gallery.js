// The last inspections as pictures, newest first, with filters; the filters stand in the address.
import { ask, fetchBlob, query } from "./api.js";
import { announce, button, clearError, el, errorPlace, repeat, showError } from "./dom.js";
import { decimal, moment, status } from "./format.js";
import { shape } from "./icons.js";
import { thumbnail } from "./pictures.js";
import { session } from "./session.js";
import { keys } from "./shortcuts.js";
import { t } from "./words.js";

const PAGE = 48;
const TYPING = 300; // milliseconds after the last letter
const LOOK = 5000;
const STATUSES = ["good", "defective", "unknown", "drifting"];
const MARKS = ["false_alarm", "missed", "wrong_product"];
const FILTERS = ["product", "status", "mark", "text", "since", "until"];

export function show(root, route, signal) {
  const filters = Object.fromEntries(FILTERS.map((name) => [name, route.query.get(name) ?? ""]));
  const grid = el("ul", { class: "gallery" });
  const place = errorPlace();
  const none = el("p", { class: "nothing", hidden: true });
  const more = button(t("history.more"), () => load(), { class: "wide", errorsIn: place, hidden: true });
  const fresh = button("", () => restart(), { class: "fresh", errorsIn: place, hidden: true });
  let before = null;
  let asked = 0; // answers to filters that were changed since are not shown

  async function load() {
    const mine = asked;
    const answer = await ask(`inspections${query({ ...wire(filters), before, limit: PAGE })}`, { signal });
    if (mine !== asked) return;
    grid.append(...answer.items.map(card));
    before = answer.next;
    more.hidden = answer.next === null;
    none.hidden = grid.children.length > 0;
    none.textContent = t(Object.values(filters).some(Boolean) ? "history.none_such" : "history.none");
  }

  async function restart() {
    asked += 1;
    before = null;
    fresh.hidden = true;
    clearError(place);
    try {
      const mine = asked;
      const old = [...grid.children];
      await load();
      if (mine !== asked) return;
      old.forEach((item) => item.remove());
      none.hidden = grid.children.length > 0;
      more.hidden = before === null;
    } catch (error) {
      if (error.name !== "AbortError") showError(place, error);
    }
  }

  const changed = () => {
    history.replaceState(null, "", `#/history${query(filters)}`);
    restart();
  };
  const csv = button(t("history.csv"), () => saveCsv(filters, signal), { errorsIn: place });
  root.append(
    el("div", { class: "head" }, el("h1", { text: t("nav.history") }), csv),
    filterBar(filters, changed, signal), place, fresh, grid, none, more);
  restart();
  keys(signal, { "/": () => document.getElementById("filter-text").focus() });
  repeat(async () => {
    const first = grid.querySelector("[data-id]");
    if (!first || document.hidden) return;
    const answer = await ask(`inspections${query({ ...wire(filters), limit: PAGE })}`, { signal }).catch(() => null);
    const n = answer?.items.filter(({ id }) => id > Number(first.dataset.id)).length ?? 0;
    if (n && fresh.hidden) announce(t("history.fresh", { n }));
    fresh.textContent = t("history.fresh", { n });
    fresh.hidden = n === 0;
  }, () => LOOK, signal);
}

/** Days of this place as moments for the service; "until" includes its day. */
function wire({ since, until, ...rest }) {
  const day = (text, later) => {
    if (!text) return "";
    const when = new Date(`${text}T00:00:00`);
    when.setDate(when.getDate() + later);
    return when.toISOString();
  };
  return { ...rest, since: day(since, 0), until: day(until, 1) };
}

function filterBar(filters, changed, signal) {
  const names = session.line.products.map(({ name }) => name);
  if (filters.product && !names.includes(filters.product)) names.push(filters.product); // removed since
  const select = (name, options) => {
    const choice = el("select", { id: `filter-${name}` }, el("option", { value: "", text: t(`filter.any_${name}`) }),
      options.map(([value, text]) => el("option", { value, text, selected: value === filters[name] })));
    choice.addEventListener("change", () => ((filters[name] = choice.value), changed()), { signal });
    return field(name, choice);
  };
  const input = (name, type) => {
    const box = el("input", { id: `filter-${name}`, type, value: filters[name] });
    let timer;
    box.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => ((filters[name] = box.value.trim()), changed()), TYPING);
    }, { signal });
    return field(name, box);
  };
  return el("form", { class: "filters", role: "search", on: { submit: (event) => event.preventDefault() } },
    select("product", names.map((name) => [name, name])),
    select("status", STATUSES.map((name) => [name, status(name)])),
    select("mark", MARKS.map((name) => [name, t(`mark.${name}`)])),
    input("text", "search"), input("since", "date"), input("until", "date"));
}

function field(name, control) {
  return el("div", { class: "field" }, el("label", { htmlFor: control.id, text: t(`filter.${name}`) }), control);
}

/** One inspection of the gallery, which opens large. */
export function card(item) {
  const mark = item.mark && el("span", { class: "mark-flag", text: t(`mark.${item.mark.kind}`) });
  const name = item.known ? item.task : t("verdict.nearest", { task: item.task });
  return el("li", {}, el("a", { class: "card", href: `#/history/${item.id}`, data: { id: item.id, status: item.status } },
    thumbnail(`inspections/${item.id}/image?side=512`),
    el("span", { class: "card-text" },
      el("span", { class: "badge", data: { status: item.status } }, shape(item.status), status(item.status)),
      el("span", { class: "card-name", text: name }),
      el("span", { class: "soft", text: `${moment(item.time)} · ${decimal(item.pred_score)}` }), mark)));
}

async function saveCsv(filters, signal) {
  const blob = await fetchBlob(`inspections.csv${query(wire(filters))}`, { signal, patience: 600_000 });
  const address = URL.createObjectURL(blob);
  el("a", { href: address, download: "inspections.csv" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000); // the browser reads it a little later
}
