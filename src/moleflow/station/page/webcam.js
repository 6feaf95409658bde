// The camera of this computer: a live picture, and one image of it at the press of a button.
import { button, el, errorPlace, showError } from "./dom.js";
import { take } from "./inbox.js";
import { t } from "./words.js";

const QUALITY = 0.95;

export function hasCamera() {
  return Boolean(navigator.mediaDevices?.getUserMedia); // absent where the page is neither local nor on HTTPS
}

/** A live picture; `.element`, `.start()`, `.capture()`, `.stop()`. */
export class Webcam {
  constructor({ left }) {
    this.video = el("video", { muted: true, autoplay: true, playsInline: true, "aria-label": t("camera.live") });
    this.choice = el("select", { "aria-label": t("camera.choose"), hidden: true, on: { change: () => this.start() } });
    this.place = errorPlace();
    this.shot = button(t("camera.capture"), () => this.capture(), { class: "primary", errorsIn: this.place });
    const close = button(t("camera.close"), left);
    this.element = el("section", { class: "webcam", "aria-label": t("camera.live") },
      el("div", { class: "video-box" }, this.video),
      el("div", { class: "row" }, this.shot, this.choice, close), this.place);
    this.stream = null;
  }

  async start() {
    this.stop();
    const wanted = this.choice.value ? { deviceId: { exact: this.choice.value } } : {};
    const video = { ...wanted, width: { ideal: 1920 }, height: { ideal: 1080 } };
    try {
      this.stream = await navigator.mediaDevices.getUserMedia({ video, audio: false });
    } catch (error) {
      const key = error.name === "NotAllowedError" ? "camera.refused" : "camera.none";
      showError(this.place, new Error(t(key)));
      return;
    }
    this.place.hidden = true;
    this.video.srcObject = this.stream;
    await this.video.play().catch(() => {}); // it was closed before it began
    this.shot.focus();
    await this.list();
  }

  async list() {
    const devices = await navigator.mediaDevices.enumerateDevices();
    const cameras = devices.filter(({ kind }) => kind === "videoinput");
    const chosen = this.stream?.getVideoTracks()[0]?.getSettings().deviceId;
    this.choice.replaceChildren(...cameras.map(({ deviceId, label }, at) =>
      el("option", { value: deviceId, text: label || t("camera.number", { n: at + 1 }), selected: deviceId === chosen })));
    this.choice.hidden = cameras.length < 2;
  }

  async capture() {
    const { videoWidth: width, videoHeight: height } = this.video;
    if (!width) return;
    const canvas = el("canvas", { width, height });
    canvas.getContext("2d").drawImage(this.video, 0, 0);
    const blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", QUALITY));
    const name = `camera-${new Date().toISOString().replace(/[:.]/g, "-")}.jpg`;
    take([new File([blob], name, { type: "image/jpeg" })]);
  }

  stop() {
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    this.stream = null;
  }
}
