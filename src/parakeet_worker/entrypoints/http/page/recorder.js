import { Failure } from "./failures.js";

const TYPES = ["audio/webm;codecs=opus", "audio/mp4", "audio/ogg;codecs=opus"];
const ENDINGS = { "audio/webm": "webm", "audio/mp4": "m4a", "audio/ogg": "ogg" };

/** A recording from the microphone, from `begin` until `end` or `discard`. */
export class Recorder {
  #stream;
  #recorder;
  #parts = [];
  #context;
  #analyser;
  #started;

  /** Request the microphone; throws a Failure. */
  static async begin() {
    if (!navigator.mediaDevices || !window.MediaRecorder) {
      throw new Failure({ error: "no MediaRecorder", code: "recording_unsupported" });
    }
    try {
      return new Recorder(await navigator.mediaDevices.getUserMedia({ audio: true }));
    } catch (failure) {
      const missing = failure.name === "NotFoundError";
      const code = missing ? "microphone_missing" : "microphone_refused";
      throw new Failure({ error: failure.message, code });
    }
  }

  constructor(stream) {
    this.#stream = stream;
    const mimeType = TYPES.find((type) => MediaRecorder.isTypeSupported(type));
    this.#recorder = new MediaRecorder(stream, mimeType ? { mimeType } : {});
    this.#recorder.ondataavailable = (event) => this.#parts.push(event.data);
    this.#recorder.start(1000);
    this.#started = performance.now();
    this.#context = new AudioContext();
    this.#analyser = this.#context.createAnalyser();
    this.#context.createMediaStreamSource(stream).connect(this.#analyser);
  }

  get seconds() {
    return (performance.now() - this.#started) / 1000;
  }

  /** The current level from 0 to 1, on a square-root scale so that quiet speech is visible. */
  get level() {
    const samples = new Float32Array(this.#analyser.fftSize);
    this.#analyser.getFloatTimeDomainData(samples);
    const peak = samples.reduce((loudest, sample) => Math.max(loudest, Math.abs(sample)), 0);
    return Math.sqrt(peak);
  }

  /** Called once if the microphone is disconnected. */
  onLost(callback) {
    for (const track of this.#stream.getTracks()) track.onended = callback;
  }

  /** Stop and return the recording as a file. */
  async end() {
    const stopped = new Promise((resolve) => (this.#recorder.onstop = resolve));
    if (this.#recorder.state !== "inactive") {
      this.#recorder.stop();
      await stopped;
    }
    this.discard();
    const type = this.#recorder.mimeType.split(";")[0];
    const ending = ENDINGS[type] ?? "audio";
    const time = new Date().toLocaleString("sv").replaceAll(":", "-");
    return new File(this.#parts, `Recording ${time}.${ending}`, { type });
  }

  discard() {
    for (const track of this.#stream.getTracks()) {
      track.onended = null;
      track.stop();
    }
    if (this.#context.state !== "closed") this.#context.close();
  }
}
