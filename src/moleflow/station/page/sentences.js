// The service explains itself in English sentences of the library. In another language the page says those it knows
// in that language's words: it recognises them by the English words "said.*", which are the library's own. A
// sentence it does not know stays as it came, marked as English.
import { el } from "./dom.js";
import { english, spoken, t } from "./words.js";

let known = null; // [pattern, key, names] of each sentence, made once

function patterns() {
  known ??= Object.entries(english())
    .filter(([key]) => key.startsWith("said."))
    .map(([key, sentence]) => {
      const names = [...sentence.matchAll(/\{(\w+)\}/g)].map(([, name]) => name);
      const literal = sentence.split(/\{\w+\}/).map((part) => part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
      // Only "what" holds a sentence of its own; any other gap ends where a clause does.
      const pattern = literal.reduce((so_far, part, at) => so_far + (names[at - 1] === "what" ? "(.+?)" : "([^;]+?)") + part);
      return [new RegExp(`^${pattern}$`), key, names];
    })
    .sort(([, , a], [, , b]) => a.length - b.length); // the plainest first: a wide one fits much
  return known;
}

/** The sentence in the page's language, or null where the page does not know it. */
export function translated(sentence) {
  for (const [pattern, key, names] of patterns()) {
    const found = pattern.exec(sentence);
    if (!found) continue;
    const values = names.map((name, at) => [name, (name === "what" && translated(found[at + 1])) || found[at + 1]]);
    return t(key, Object.fromEntries(values));
  }
  return null;
}

/** What the service said, as an element; several sentences are told apart by line breaks, full stops or "; ". */
export function said(text, { tag = "span", names = "" } = {}) {
  if (spoken() === "en") return el(tag, { class: names, text: capital(text) });
  const alone = translated(text);
  if (alone !== null) return el(tag, { class: names, text: alone });
  const spans = sentences(text).flatMap((sentence, at) => {
    const words = translated(sentence);
    const span = words === null ? el("span", { text: capital(sentence), lang: "en" }) : el("span", { text: words });
    return at ? [" ", span] : [span];
  });
  return el(tag, { class: names }, spans);
}

/** The longest runs of clauses that are known, and what lies between: some sentences hold a "; " themselves. */
function sentences(text) {
  const clauses = text.split(/\n|; |\.\s+|\.$/).filter(Boolean);
  const found = [];
  for (let at = 0; at < clauses.length; ) {
    let end = clauses.length;
    while (end > at + 1 && translated(clauses.slice(at, end).join("; ")) === null) end -= 1;
    found.push(clauses.slice(at, end).join("; "));
    at = end;
  }
  return found;
}

function capital(sentence) {
  return sentence.charAt(0).toUpperCase() + sentence.slice(1);
}
