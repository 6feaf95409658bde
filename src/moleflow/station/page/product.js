// One product: figures, threshold, versions, drift, and how to change or remove it.
import { ask } from "./api.js";
import { announce, button, el, errorPlace, showError } from "./dom.js";
import { confirmed, confirmedByName } from "./dialogs.js";
import { driftSection } from "./drift.js";
import { bytes, span, status } from "./format.js";
import { shape, tool } from "./icons.js";
import { figures } from "./products.js";
import { said } from "./sentences.js";
import { look, may } from "./session.js";
import { thresholdSection } from "./threshold.js";
import { named, t } from "./words.js";

const STATUSES = ["good", "defective", "unknown", "drifting"];

export async function show(root, route, signal) {
  const name = route.parts[1];
  const path = `products/${encodeURIComponent(name)}`;
  const place = errorPlace();
  const body = el("div", { class: "sections" });
  root.append(el("div", { class: "head" },
    el("div", {}, el("a", { href: "#/products", class: "back" }, tool("back"), t("nav.products")), el("h1", { text: name })),
    el("div", { class: "row" }, updateLink(name))), place, body);
  const draw = async () => {
    try {
      const product = await ask(path, { signal });
      body.replaceChildren(
        ...[overview(product), product.quarantined ? null : thresholdSection(product, path, { signal, changed: draw }),
          versions(product, path, { signal, changed: draw }), product.quarantined ? null : driftSection(path, signal),
          parts(product), removal(product, path, signal)].filter(Boolean));
    } catch (error) {
      if (error.name !== "AbortError") showError(place, error);
    }
  };
  await draw();
}

function updateLink(name) {
  if (!may("teach")) return null;
  return el("a", { class: "button", href: `#/teach?update=${encodeURIComponent(name)}`, text: t("product.update") });
}

function overview(product) {
  const { recent, promise, suspects, quarantined, reason } = product;
  const warn = quarantined && el("p", { class: "warn" }, el("b", { text: t("product.quarantined") }), " ", reason);
  return el("section", { "aria-label": t("product.figures") }, warn, !quarantined && figures(product),
    promise && said(promise, { tag: "p", names: "lead" }),
    suspects > 0 && el("p", { class: "soft", text: t("product.suspects", { n: suspects }) }),
    recentBar(product.name, recent));
}

/** The last verdicts as shares of one bar, each a way to its pictures. */
function recentBar(name, recent) {
  const total = STATUSES.reduce((sum, one) => sum + (recent?.[one] ?? 0), 0);
  if (!total) return el("p", { class: "soft", text: t("product.nothing_recent") });
  const some = STATUSES.filter((one) => recent[one] > 0);
  const bar = el("div", { class: "mix", "aria-hidden": "true" }, some.map((one) =>
    el("span", { data: { status: one }, vars: { "flex-grow": recent[one] } })));
  const list = el("ul", { class: "mix-list" }, some.map((one) => el("li", {},
    el("a", { class: "tally", data: { status: one }, href: `#/history?product=${encodeURIComponent(name)}&status=${one}` },
      shape(one), t("tally", { n: recent[one], status: status(one) })))));
  return el("div", { class: "recent" }, el("h2", { text: t("product.recent") }), bar, list);
}

function versions({ versions: all, name }, path, { signal, changed }) {
  const place = errorPlace();
  const rows = [...all].reverse().map(({ version, current }) => {
    const back = async () => {
      const title = t("versions.title", { version });
      if (!(await confirmed(title, t("versions.means", { name }), t("versions.back")))) return;
      await ask(`${path}/rollback`, { method: "POST", body: { version }, signal });
      announce(t("versions.done", { version }));
      await look();
      await changed();
    };
    const act = current
      ? el("span", { class: "current", text: t("versions.current") })
      : may("teach") && backButton(version, back, place);
    return el("li", {}, el("span", { class: "strong", text: version }), act);
  });
  return el("section", {}, el("h2", { text: t("versions.heading") }), el("ol", { class: "versions" }, rows), place);
}

function backButton(version, back, place) {
  const node = button(t("versions.back"), back, { class: "small", errorsIn: place });
  node.append(el("span", { class: "hidden", text: t("product.version", { version }) }));
  return node;
}

function parts({ parts: byPart, seconds }) {
  const table = (key, values, written) => el("table", {},
    el("caption", { text: t(key) }), el("tbody", {}, Object.entries(values ?? {}).map(([name, value]) =>
      el("tr", {}, el("th", { scope: "row", text: named("part", name) }), el("td", { text: written(value) })))));
  const times = typeof seconds === "number" ? {} : seconds;
  return el("details", {}, el("summary", { text: t("parts.heading") }),
    el("div", { class: "tables" }, table("parts.bytes", byPart, bytes), table("parts.seconds", times, span)));
}

function removal({ name }, path, signal) {
  if (!may("admin")) return null;
  const place = errorPlace();
  const remove = async () => {
    if (!(await confirmedByName(name))) return;
    await ask(path, { method: "DELETE", signal });
    announce(t("remove.done", { name }));
    await look();
    location.hash = "#/products";
  };
  return el("section", { class: "removal" }, el("h2", { text: t("remove.heading") }),
    el("p", { class: "soft", text: t("remove.means") }),
    button(t("remove.open"), remove, { class: "danger-quiet", errorsIn: place }), place);
}
