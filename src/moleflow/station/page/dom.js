// Building elements without markup in strings: text can never become HTML, and the CSP needs no exception.

const SVG = "http://www.w3.org/2000/svg";

/**
 * An element. `given`: class, text, on {event: listener}, data {name: value}, vars {--name: value},
 * signal for the listeners; whatever else is a property where the element has it, else an attribute.
 * Children that are null, undefined or false are left out.
 */
export function el(tag, given = {}, ...children) {
  return filled(document.createElement(tag), given, children);
}

export function svg(tag, given = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), given, children);
}

function filled(node, { class: names, text, on, data, vars, signal, ...rest }, children) {
  if (names) node.setAttribute("class", names);
  if (text !== undefined && text !== null) node.textContent = text;
  for (const [event, listener] of Object.entries(on ?? {})) node.addEventListener(event, listener, { signal });
  for (const [name, value] of Object.entries(data ?? {})) node.dataset[name] = value;
  for (const [name, value] of Object.entries(vars ?? {})) node.style.setProperty(name, value);
  for (const [name, value] of Object.entries(rest)) {
    if (value === undefined || value === null || value === false) continue;
    if (name in node && node.namespaceURI !== SVG && !name.includes("-")) node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** A button that shows that it works, works once at a time, and says what went wrong below `errorsIn`. */
export function button(label, act, { class: names = "", errorsIn, ...given } = {}) {
  const node = el("button", { type: "button", class: names, text: label, ...given });
  node.addEventListener("click", async () => {
    if (node.getAttribute("aria-busy") === "true") return;
    node.setAttribute("aria-busy", "true");
    if (errorsIn) clearError(errorsIn);
    try {
      await act(node);
    } catch (error) {
      if (error.name === "AbortError") return;
      if (errorsIn) showError(errorsIn, error);
      else throw error;
    } finally {
      node.removeAttribute("aria-busy");
    }
  });
  return node;
}

/** A place for an error, near what it is about; empty until there is one. */
export function errorPlace() {
  return el("p", { class: "error", role: "alert", hidden: true });
}

export function showError(place, error) {
  place.textContent = error.message;
  if (error.lang) place.lang = error.lang;
  else place.removeAttribute("lang");
  place.hidden = false;
}

export function clearError(place) {
  place.textContent = "";
  place.hidden = true;
}

/** Runs `act` now and again after each `wait()` milliseconds until `signal` aborts; `act` handles its errors. */
export async function repeat(act, wait, signal) {
  while (!signal.aborted) {
    await act();
    await pause(wait(), signal);
  }
}

/** Resolves after `milliseconds`, or at once when `signal` aborts. */
export function pause(milliseconds, signal) {
  return new Promise((done) => {
    const timer = setTimeout(done, milliseconds);
    signal?.addEventListener("abort", () => (clearTimeout(timer), done()), { once: true });
  });
}

/** What the browser keeps for this page; nothing where storage is forbidden. */
export function remembered(name, fallback) {
  try {
    return localStorage.getItem(`moleflow.${name}`) ?? fallback;
  } catch {
    return fallback;
  }
}

export function remember(name, value) {
  try {
    localStorage.setItem(`moleflow.${name}`, value);
  } catch {
    // It holds until the page is closed.
  }
}

/** Said to those who listen to the page; `urgent` interrupts. */
export function announce(sentence, { urgent = false } = {}) {
  const place = document.getElementById(urgent ? "announce" : "tell");
  // The same sentence twice is two messages: an empty text between makes it heard again.
  place.textContent = "";
  requestAnimationFrame(() => (place.textContent = sentence));
}
