// The one way to the service: its token, its errors in its own words, and whether it can be reached at all.
import { pause } from "./dom.js";
import { t } from "./words.js";

const ROOT = "api/v1/";
const PATIENCE = 30_000; // milliseconds for a question; sending images may take as long as it takes
export const LOOKING = 6000; // for a look that is repeated: what is shown must not stand long after the station went
const STRIKES = 3;
const LASTING = new Set(["line", "quarantined", "nothing_taught"]);
const KEPT = "moleflow.token";
const UNNAMED = "unnamed"; // code of an answer that explains nothing: a sentence of the page's stands for it

/** The service said no; `message` is its own sentence. */
export class Refusal extends Error {
  constructor(status, code, message, retryAfter = 0) {
    super(message);
    const lang = code === UNNAMED ? undefined : "en"; // the service speaks English
    Object.assign(this, { name: "Refusal", status, code, retryAfter, lang });
  }
  /** True where the same request may succeed a little later; what is damaged stays so until somebody mends it. */
  get passes() {
    return this.status === 429 || (this.status === 503 && !LASTING.has(this.code));
  }
}

/** The service did not answer. */
export class Lost extends Error {
  constructor() {
    super(t("connection.lost_short"));
    this.name = "Lost";
  }
}

/** Events "lost" and "found" when the connection changes, "refused" and "admitted" after a token was asked for. */
export const connection = new EventTarget();
let reachable = true;

function met(now) {
  if (now === reachable) return;
  reachable = now;
  connection.dispatchEvent(new Event(now ? "found" : "lost"));
}

export function isReachable() {
  return reachable;
}

let token = sessionStorageItem();
let entering = null; // one dialog for all requests that were refused meanwhile
let declined = null; // the refusal after which a person did not enter a token
let enter = async () => null;

function sessionStorageItem() {
  try {
    return sessionStorage.getItem(KEPT);
  } catch {
    return null;
  }
}

export function hasToken() {
  return token !== null;
}

export function useToken(value) {
  token = value;
  declined = null;
  try {
    if (value === null) sessionStorage.removeItem(KEPT);
    else sessionStorage.setItem(KEPT, value);
  } catch {
    // It holds until the page is closed.
  }
}

/** Sets who asks a person for a token: `ask(message)` gives it, or null when the person declines. */
export function tokensComeFrom(ask) {
  enter = ask;
}

/** Asks for a token; true when there is one. Nothing is sent any more after a person declined. */
export async function enterToken(refusal) {
  entering ??= enter(token === null ? null : refusal?.message).finally(() => (entering = null));
  const given = await entering;
  if (given === null) declined = refusal ?? declined;
  else if (given !== token || declined) useToken(given);
  connection.dispatchEvent(new Event(given === null ? "refused" : "admitted"));
  return given !== null;
}

/** A response of the service that is no error. */
export async function request(path, { method = "GET", body, signal, patience = PATIENCE, cache = "default" } = {}) {
  if (declined) throw declined;
  const sent = token;
  const headers = { "X-Moleflow": "1", Accept: "application/json, image/*, text/csv" };
  if (token !== null) headers.Authorization = `Bearer ${token}`;
  let content = body;
  if (body !== undefined && !(body instanceof FormData)) {
    headers["Content-Type"] = "application/json";
    content = JSON.stringify(body);
  }
  const limit = AbortSignal.timeout(patience);
  const options = { method, headers, body: content, credentials: "omit", cache };
  let answer;
  try {
    answer = await fetch(ROOT + path, { ...options, signal: signal ? AbortSignal.any([signal, limit]) : limit });
  } catch (error) {
    if (signal?.aborted) throw new DOMException("left", "AbortError");
    met(false);
    throw new Lost();
  }
  if (answer.status === 502 || answer.status === 504) {
    met(false); // a proxy speaks for a service that is away
    throw new Lost();
  }
  met(true);
  if (answer.ok) return answer;
  const refusal = await refusalOf(answer);
  if (answer.status !== 401) throw refusal;
  const another = token !== sent; // somebody entered one while this was on its way
  if (another || (await enterToken(refusal))) {
    return request(path, { method, body, signal, patience, cache });
  }
  throw refusal;
}

async function refusalOf(answer) {
  const wait = Number(answer.headers.get("Retry-After")) || 0;
  try {
    const { error } = await answer.json();
    return new Refusal(answer.status, error.code, error.message, wait);
  } catch {
    return new Refusal(answer.status, UNNAMED, t("error.unnamed", { status: answer.status }), wait);
  }
}

/** What the service says, as a value. */
export async function ask(path, options) {
  const answer = await request(path, options);
  return answer.status === 204 ? null : answer.json();
}

/** A file of the service; one that the browser keeps is shown only after the service said that it is still the same. */
export async function fetchBlob(path, options) {
  return (await request(path, { ...options, cache: "no-cache" })).blob();
}

/** Sends a form of any size. Said to `progress` from 0 to 1 as it goes, which fetch cannot tell. */
export async function send(path, form, { progress = () => {}, signal } = {}) {
  if (declined) throw declined;
  const sent = token;
  const { status, text, wait } = await upload(path, form, progress, signal);
  if (status === 0 || status === 502 || status === 504) {
    met(false);
    throw new Lost();
  }
  met(true);
  const said = parsed(text);
  if (status < 300 && said !== null) return said;
  const sentence = said?.error?.message ?? t("error.unnamed", { status });
  const refusal = new Refusal(status, said?.error?.code ?? UNNAMED, sentence, wait);
  const another = token !== sent; // somebody entered one while this was on its way
  if (status === 401 && (another || (await enterToken(refusal)))) {
    return send(path, form, { progress, signal });
  }
  throw refusal;
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

function upload(path, form, progress, signal) {
  return new Promise((done, failed) => {
    const way = new XMLHttpRequest();
    way.open("POST", ROOT + path);
    way.setRequestHeader("X-Moleflow", "1");
    if (token !== null) way.setRequestHeader("Authorization", `Bearer ${token}`);
    way.upload.addEventListener("progress", (event) => {
      if (event.lengthComputable) progress(event.loaded / event.total);
    });
    way.addEventListener("loadend", () => {
      const wait = Number(way.getResponseHeader("Retry-After")) || 0;
      done({ status: way.status, text: way.responseText, wait });
    });
    signal?.addEventListener("abort", () => {
      way.abort();
      failed(new DOMException("left", "AbortError"));
    });
    way.send(form);
  });
}

/**
 * `act` again and again while the service is away, asks for patience, or waits for a token. Where it answers
 * everything but this, three times over, this is what it cannot bear, and the error stands.
 */
export async function insistently(act, { signal, waiting = () => {} } = {}) {
  for (let strikes = 0; ; ) {
    try {
      return await act();
    } catch (error) {
      if (!(error instanceof Lost) && !error.passes && error.status !== 401) throw error;
      if (error instanceof Lost && (await answers()) && (strikes += 1) >= STRIKES) throw error;
      waiting(error);
      await pause(Math.max(1000 * (error.retryAfter ?? 0), 1500), signal);
      if (signal?.aborted) throw new DOMException("left", "AbortError");
    }
  }
}

function answers() {
  return request("me", { patience: LOOKING }).then(() => true, () => false);
}

/** "?a=b" of what has a value. */
export function query(values) {
  const given = Object.entries(values).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  return given.length ? `?${new URLSearchParams(given)}` : "";
}
