// What the line knows: a card per product.
import { el } from "./dom.js";
import { bytes, shortRate, span, thresholdOf, whole } from "./format.js";
import { may, news, session } from "./session.js";
import { t } from "./words.js";

export function show(root, _route, signal) {
  const list = el("ul", { class: "products" });
  const sum = el("p", { class: "lead" });
  const teach = may("teach") && el("a", { class: "button primary", href: "#/teach", text: t("products.teach") });
  root.append(el("div", { class: "head" }, el("h1", { text: t("nav.products") }), teach), sum, list);
  const draw = () => {
    const { products, disk_free_bytes: free } = session.line;
    const bytesOfAll = products.reduce((so_far, product) => so_far + product.bytes, 0);
    sum.textContent = products.length
      ? t("products.sum", { n: products.length, bytes: bytes(bytesOfAll), free: bytes(free) })
      : t(may("teach") ? "products.none" : "products.none_and_may_not");
    list.replaceChildren(...products.map(card));
  };
  news.addEventListener("products", draw, { signal });
  draw();
}

function card(product) {
  const { name, version, quarantined, reason } = product;
  const link = el("a", { class: "product-name", href: `#/products/${encodeURIComponent(name)}`, text: name });
  const state = quarantined && el("p", { class: "warn" }, el("b", { text: t("product.quarantined") }), " ", reason);
  return el("li", { class: "product" },
    el("div", { class: "product-head" }, el("h2", {}, link), version && el("span", { class: "soft", text: t("product.version", { version }) })),
    state, !quarantined && figures(product));
}

/** Seconds, which a product's own page has by stage; null of a product that cannot be read. */
function total(seconds) {
  if (seconds === null || typeof seconds === "number") return seconds;
  const stages = Object.values(seconds);
  return stages.length ? stages.reduce((sum, one) => sum + one, 0) : null;
}

/** The figures of a product, here and on its own page. */
export function figures({ images, threshold, false_alarm_rate: share, bytes: size, seconds }) {
  const pair = (key, value) => el("div", {}, el("dt", { text: t(key) }), el("dd", { text: value }));
  return el("dl", { class: "figures" },
    pair("product.images", whole(images)), pair("product.threshold", thresholdOf(threshold)),
    pair("product.rate", threshold === null ? "–" : shortRate(share)), pair("product.bytes", bytes(size)),
    pair("product.seconds", span(total(seconds))));
}
