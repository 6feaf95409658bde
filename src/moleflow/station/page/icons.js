// Shapes that tell verdicts apart without colour: circle, octagon, diamond, triangle, square; an hourglass and a broken
// bar where there is none; and a few tools.
import { svg } from "./dom.js";

const SHAPES = {
  good: ["M12 1.5a10.5 10.5 0 1 0 0 21 10.5 10.5 0 0 0 0-21z", "M7 12.4l3.4 3.4L17 9"],
  defective: ["M7.7 1.5h8.6l6.2 6.2v8.6l-6.2 6.2H7.7l-6.2-6.2V7.7z", "M8 8l8 8M16 8l-8 8"],
  unknown: ["M12 .8L23.2 12 12 23.2.8 12z", "M9.3 9.6a2.8 2.8 0 1 1 4.3 2.4c-1 .7-1.6 1.2-1.6 2.3M12 17v.3"],
  drifting: ["M12 1.8L23.3 21.5H.7z", "M7.6 16.6c1.5-1.7 2.9-1.7 4.4 0s2.9 1.7 4.4 0M12 8.3v4"],
  failed: ["M2.5 2.5h19v19h-19z", "M7.5 16.5l9-9"],
  working: ["M4 1.5h16v3.6L14.4 12l5.6 6.9v3.6H4v-3.6L9.6 12 4 5.1z", "M8.4 18.9h7.2M10 5.3h4"],
  lost: ["M1.5 6h8v12h-8zM14.5 6h8v12h-8z", "M4.2 12h2.6M17.2 12h2.6"],
  ready: ["M12 1.5a10.5 10.5 0 1 0 0 21 10.5 10.5 0 0 0 0-21z", "M12 7v5.4l3.4 2"],
};

const TOOLS = {
  light: "M12 7.5a4.5 4.5 0 1 0 0 9 4.5 4.5 0 0 0 0-9zM12 1.8v2.4M12 19.8v2.4M1.8 12h2.4M19.8 12h2.4M4.8 4.8l1.7 1.7M17.5 17.5l1.7 1.7M4.8 19.2l1.7-1.7M17.5 6.5l1.7-1.7",
  dark: "M20 14.2A8.3 8.3 0 0 1 9.8 4a8.3 8.3 0 1 0 10.2 10.2z",
  auto: "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18zM12 3v18M12 7.5h5.5M12 12h9M12 16.5h5.5",
  photos: "M3 6.5h14v12H3zM7 6V3.5h14v12h-3.5M3 15.5l4-4 4.5 4.5 2-2 3.5 3.5",
  folder: "M2.5 5.5h7l2 2.5h10v11.5h-19z",
  camera: "M2.5 7h4.8l1.7-2.5h6L16.7 7h4.8v12.5h-19zM12 9.2a3.7 3.7 0 1 0 0 7.4 3.7 3.7 0 0 0 0-7.4z",
  close: "M5 5l14 14M19 5L5 19",
  back: "M14.5 5l-7 7 7 7",
  next: "M9.5 5l7 7-7 7",
};

/** The shape of a verdict, filled, with its sign in the colour behind it. */
export function shape(status, names = "") {
  const [outline, sign] = SHAPES[status];
  return svg("svg", { class: `shape ${names}`, viewBox: "0 0 24 24", "aria-hidden": "true" },
    svg("path", { class: "outline", d: outline }), svg("path", { class: "sign", d: sign }));
}

export function tool(name) {
  return svg("svg", { class: "tool", viewBox: "0 0 24 24", "aria-hidden": "true" }, svg("path", { d: TOOLS[name] }));
}
