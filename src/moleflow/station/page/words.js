// The page's words in one language at a time. "{n|part|parts}" chooses by the language's own plural.
import { remember, remembered } from "./dom.js";

export const LANGUAGES = { en: "English", ko: "한국어" };

let words = {};
let ours = null; // the English words, by which sentences of the service are recognised
let language = "en";

export function spoken() {
  return language;
}

/** The language kept here, else the first of the browser's that the page speaks, else English. */
export function preferred() {
  const kept = remembered("language", null);
  const asked = [kept, ...navigator.languages].filter(Boolean).map((tag) => tag.toLowerCase().split("-")[0]);
  return asked.find((tag) => tag in LANGUAGES) ?? "en";
}

export function english() {
  return ours;
}

async function read(tag) {
  const answer = await fetch(`page/words.${tag}.json`);
  if (!answer.ok) throw new Error(`words.${tag}.json: ${answer.status}`);
  return answer.json();
}

export async function speak(tag, { keep = false } = {}) {
  ours ??= await read("en");
  words = tag === "en" ? ours : await read(tag);
  language = tag;
  document.documentElement.lang = tag;
  if (keep) remember("language", tag);
}

/** The sentence of `key` with `values` in it; numbers are written as the language writes them. */
export function t(key, values = {}) {
  const sentence = words[key];
  if (sentence === undefined) throw new Error(`no words for ${key}`);
  return sentence.replace(/\{(\w+)(?:\|([^|}]*)\|([^}]*))?\}/g, (_, name, one, other) => {
    const value = values[name];
    if (one !== undefined) return new Intl.PluralRules(language).select(Number(value)) === "one" ? one : other;
    return typeof value === "number" ? new Intl.NumberFormat(language).format(value) : String(value ?? "");
  });
}

export function has(key) {
  return key in words;
}

/** `t` for a name that the service chose, such as a stage; the name itself where the page has no word. */
export function named(prefix, name) {
  const key = `${prefix}.${name}`;
  return has(key) ? words[key] : String(name);
}

/** Fills what index.html left empty. */
export function fill(root = document) {
  for (const node of root.querySelectorAll("[data-t]")) node.textContent = t(node.dataset.t);
  for (const node of root.querySelectorAll("[data-t-label]")) {
    node.setAttribute("aria-label", t(node.dataset.tLabel));
    if (node.tagName === "BUTTON") node.title = t(node.dataset.tLabel);
  }
}
