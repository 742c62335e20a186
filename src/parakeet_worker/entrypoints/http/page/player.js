import { spoken, written } from "./clock.js";

const STEP_SECONDS = 5;

/** Plays the recording: an audio element with the page's own controls. */
export class Player {
  #root;
  #audio = new Audio();
  #play;
  #position;
  #clock;
  #speed;
  #address;
  #frame;
  #seconds = 0;

  /** `onTime(seconds)` is called as it plays and when it is moved; `onUnplayable()` at most once. */
  constructor(root, { onTime, onUnplayable }) {
    this.#root = root;
    this.#play = root.querySelector("#play");
    this.#position = root.querySelector("#position");
    this.#clock = root.querySelector("#clock");
    this.#speed = root.querySelector("#speed");
    this.onTime = onTime;
    this.onUnplayable = onUnplayable;
    this.#audio.preload = "metadata";
    this.#listen();
  }

  get playable() {
    return this.#address !== undefined;
  }

  get seconds() {
    return this.#audio.currentTime;
  }

  /** In seconds; NaN before the metadata is loaded, Infinity for some files. */
  get duration() {
    return this.#audio.duration;
  }

  load(recording) {
    this.unload();
    this.#address = URL.createObjectURL(recording);
    this.#audio.src = this.#address;
    this.#root.hidden = false;
    this.#show();
  }

  unload() {
    if (this.#address === undefined) return;
    this.#audio.pause();
    this.#audio.removeAttribute("src");
    this.#audio.load();
    URL.revokeObjectURL(this.#address);
    this.#address = undefined;
    this.#seconds = 0;
    this.#root.hidden = true;
  }

  /** Set the duration from the server; files of a MediaRecorder declare none. */
  lasts(seconds) {
    this.#seconds = seconds;
    this.#show();
  }

  seek(seconds) {
    this.#audio.currentTime = Math.min(Math.max(0, seconds), this.#length || seconds);
    this.#show();
  }

  /** Play or pause. */
  toggle() {
    if (this.#audio.paused) this.#start();
    else this.#audio.pause();
  }

  async playFrom(seconds) {
    if (!this.playable) return;
    this.seek(seconds);
    await this.#start();
  }

  get #length() {
    return Number.isFinite(this.#audio.duration) ? this.#audio.duration : this.#seconds;
  }

  #listen() {
    const audio = this.#audio;
    this.#play.onclick = () => this.toggle();
    this.#position.oninput = () => this.seek(Number(this.#position.value));
    this.#position.onkeydown = (event) => this.#stepped(event);
    this.#speed.onchange = () => (audio.playbackRate = Number(this.#speed.value));
    audio.onplay = () => this.#tick();
    audio.onpause = audio.onended = audio.onseeked = audio.ondurationchange = () => this.#show();
    audio.onerror = () => {
      if (!this.playable) return;
      this.unload();
      this.onUnplayable();
    };
  }

  async #start() {
    this.#audio.playbackRate = Number(this.#speed.value);
    // Rejected only after a newer call or `onerror`.
    await this.#audio.play().catch(() => {});
  }

  #stepped(event) {
    const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 };
    if (!(event.key in steps)) return;
    event.preventDefault();
    this.seek(this.seconds + steps[event.key] * STEP_SECONDS);
  }

  #tick() {
    cancelAnimationFrame(this.#frame);
    this.#show();
    if (!this.#audio.paused) this.#frame = requestAnimationFrame(() => this.#tick());
  }

  #show() {
    const { paused, currentTime } = this.#audio;
    const length = this.#length;
    this.#play.setAttribute("aria-label", paused ? "Play" : "Pause");
    this.#position.max = length || 1;
    this.#position.value = currentTime;
    const of = length ? ` of ${spoken(length)}` : "";
    this.#position.setAttribute("aria-valuetext", spoken(currentTime) + of);
    this.#clock.textContent = written(currentTime) + (length ? ` / ${written(length)}` : "");
    this.onTime(currentTime);
  }
}
