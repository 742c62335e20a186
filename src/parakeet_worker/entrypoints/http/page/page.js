/** The page: one recording at a time, from choosing it to its words. */
import { counted, spoken, written } from "./clock.js";
import { fileOf, save } from "./downloads.js";
import { Failure } from "./failures.js";
import { Player } from "./player.js";
import { untilReady } from "./readiness.js";
import { Recorder } from "./recorder.js";
import { Search } from "./search.js";
import { factsOf, isMixed, segmentsOf, SURE, TranscriptView } from "./transcript.js";
import { transcribe } from "./transcription.js";

const KEY = "parakeet-key";
const ANNOUNCE_EVERY_MS = 5000;
const STAGES = ["choosing", "recording", "working", "outcome"];
const STATES = {
  ready: "",
  warming: "The model is being loaded…",
  lost: "The server's engine has stopped.",
  away: "The server cannot be reached.",
};

const at = (id) => document.getElementById(id);

let server;
let recorder;
let recording;
let recorded = false;
let answer;
let abort;
let retry;

const transcript = new TranscriptView(at("transcript"), {
  onPlay: (seconds) => player.playFrom(seconds),
});
const player = new Player(at("player"), {
  onTime: (seconds) => transcript.light(seconds),
  onUnplayable: unplayable,
});
const search = new Search(at("search"), {
  words: () => transcript.words,
  onHit: (word) => transcript.show(word),
});

// --- One stage at a time -------------------------------------------------------------------

/** Shows one stage; the focus is not left in one that goes away. */
function enter(stage) {
  const focused = document.activeElement;
  const leaves = STAGES.some((name) => name !== stage && at(name).contains(focused));
  for (const name of STAGES) at(name).hidden = name !== stage;
  document.body.dataset.stage = stage;
  if (!leaves && focused !== document.body) return;
  const target = stage === "choosing" ? at("choose") : at(`${stage}-title`);
  target.focus({ preventScroll: true });
}

function busy() {
  return ["recording", "working"].includes(document.body.dataset.stage);
}

function announce(text) {
  at("announcement").textContent = text;
}

/** Nothing is left of the last recording. */
function clear() {
  abort?.abort();
  forgive();
  recording = answer = undefined;
  player.unload();
  transcript.clear();
  search.clear();
  for (const name of ["words", "downloads", "unsure", "unplayable", "warnings"]) at(name).hidden = true;
  at("file").value = "";
}

function restart() {
  clear();
  enter("choosing");
}

addEventListener("beforeunload", (event) => {
  if (busy()) event.preventDefault();
});

// --- Choosing ------------------------------------------------------------------------------

function begin(files) {
  if (busy()) announce("One recording at a time: cancel this one first.");
  else if (files.length > 1) fail(new Failure({ error: `got ${files.length}`, code: "several_files" }));
  else if (files.length) hear(files[0]);
}

at("choose").onclick = () => at("file").click();
at("file").onchange = (event) => begin([...event.target.files]);
at("another").onclick = restart;

// Files may be dropped anywhere: one that misses would otherwise replace the page.
addEventListener("dragover", (event) => {
  if (!event.dataTransfer.types.includes("Files")) return;
  event.preventDefault();
  document.body.classList.toggle("dropping", !busy());
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
});
addEventListener("drop", (event) => {
  if (!event.dataTransfer.types.includes("Files")) return;
  event.preventDefault();
  document.body.classList.remove("dropping");
  begin([...event.dataTransfer.files]);
});

// --- Recording -----------------------------------------------------------------------------

at("record").onclick = async () => {
  forgive();
  // Once is enough, however long the browser asks its user.
  at("record").disabled = true;
  try {
    recorder = await Recorder.begin();
  } catch (failure) {
    fail(failure);
    return;
  } finally {
    at("record").disabled = false;
  }
  if (busy()) {
    recorder.discard();
    recorder = undefined;
    return;
  }
  recorder.onLost(finish);
  enter("recording");
  announce("Recording.");
  meter();
};

function meter() {
  if (!recorder) return;
  at("elapsed").value = written(recorder.seconds);
  at("level").value = recorder.level;
  requestAnimationFrame(meter);
}

async function finish() {
  if (!recorder) return;
  const ended = recorder;
  recorder = undefined;
  hear(await ended.end(), { own: true });
}

at("stop").onclick = finish;
at("discard").onclick = () => {
  recorder.discard();
  recorder = undefined;
  restart();
};

// --- Hearing -------------------------------------------------------------------------------

async function hear(file, { own = false } = {}) {
  clear();
  recording = file;
  recorded = own;
  abort = new AbortController();
  retry = () => hear(file, { own });
  at("working-title").textContent = file.name;
  enter("working");
  transcript.playable = true;
  player.load(file);
  const { signal } = abort;
  try {
    await ready(signal);
    doing("Sending…");
    const events = transcribe(file, options(), { key: key(), signal });
    for await (const event of events) take(event);
  } catch (failure) {
    if (signal.aborted) return;
    if (!transcript.sentences) player.unload();
    enter("choosing");
    fail(failure);
  }
}

/** Nothing is sent to a server whose model is still being loaded: it would be refused. */
async function ready(signal) {
  if (server !== "warming") return;
  doing("Waiting for the model to be loaded…");
  await untilReady(() => {}, signal);
}

function options() {
  return {
    language: at("language").value,
    channels: at("separate").checked ? "separate" : "",
  };
}

function take({ name, document: said }) {
  if (name === "segment") {
    transcript.append(said);
    at("words").hidden = false;
    search.refresh();
    progress(said.end);
  } else if (name === "progress") {
    progress(said.audio_seconds);
  } else if (name === "result") {
    conclude(said);
  }
}

/** What is being done, with no end in sight; read aloud when it changes. */
function doing(text) {
  at("stage").textContent = text;
  at("progress").removeAttribute("value");
  announce(text);
}

let announced = 0;

function progress(seconds) {
  const whole = player.duration;
  const known = Number.isFinite(whole);
  at("stage").textContent = `Heard ${written(seconds)}${known ? ` of ${written(whole)}` : ""}`;
  if (known) at("progress").value = Math.min(1, seconds / whole);
  if (performance.now() - announced < ANNOUNCE_EVERY_MS) return;
  announced = performance.now();
  announce(`Heard ${spoken(seconds)}, ${counted(transcript.sentences, "sentence")} so far.`);
}

at("cancel").onclick = () => {
  restart();
  announce("Cancelled.");
};

// --- The outcome ---------------------------------------------------------------------------

function conclude(whole) {
  answer = whole;
  transcript.replace(segmentsOf(whole));
  transcript.speaks(codeOf(whole));
  player.lasts(whole.duration);
  search.refresh();
  at("outcome-title").textContent = recording.name;
  at("facts").textContent = factsOf(whole);
  at("downloads").hidden = false;
  at("audio").hidden = !recorded;
  at("words").hidden = !whole.words.length;
  warn(whole);
  explain(transcript.unsure);
  enter("outcome");
  announce(`Done. ${factsOf(whole)}.`);
}

/** What the reader must know about words that may be missing, each place to be listened to. */
function warn({ warnings = [], words }) {
  const lines = warnings.map((warning) =>
    warning.start === undefined ? [warning.message] : [`${warning.message} `, placeOf(warning)],
  );
  if (!words.length) lines.unshift(["No words were heard in this recording."]);
  at("warnings").replaceChildren(
    ...lines.map((parts) => {
      const item = document.createElement("li");
      item.append(...parts);
      return item;
    }),
  );
  at("warnings").hidden = !lines.length;
}

function placeOf({ start }) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = written(start);
  button.setAttribute("aria-label", `Play from ${spoken(start)}`);
  button.onclick = () => player.playFrom(start);
  return button;
}

function explain(unsure) {
  const sample = document.createElement("span");
  sample.className = "unsure";
  sample.textContent = counted(unsure, "word");
  const limit = Math.round(SURE * 100);
  const verb = unsure === 1 ? "is" : "are";
  const why = ` ${verb} underlined like this: the model was less than ${limit} % sure.`;
  at("unsure").replaceChildren(sample, why);
  at("unsure").hidden = !unsure;
}

/** The language's code for `lang`; none where it is a guess, or one of several. */
function codeOf(whole) {
  const name = whole.language?.toLowerCase();
  if (!name || whole.language_probability < SURE || isMixed(whole)) return undefined;
  return [...at("language").options].find((option) => option.text.toLowerCase() === name)?.value;
}

function unplayable() {
  transcript.playable = false;
  at("unplayable").hidden = false;
}

for (const button of at("downloads").querySelectorAll("[data-format]")) {
  button.onclick = async () => {
    try {
      save(await fileOf(answer, button.dataset.format, recording.name, key()));
      announce(`${button.textContent} file saved.`);
    } catch (failure) {
      retry = () => button.click();
      fail(failure);
    }
  };
}
at("audio").onclick = at("keep").onclick = () => save(recording);

// --- Failures ------------------------------------------------------------------------------

function fail(failure) {
  // A mistake of the page's own: the console has where it happened.
  if (!(failure instanceof Failure)) console.error(failure);
  const told =
    failure instanceof Failure ? failure : new Failure({ error: `${failure}`, code: "page_failed" });
  at("failure-title").textContent = told.title;
  at("failure-advice").textContent = told.advice;
  at("failure-name").textContent = recording?.name ?? "";
  at("failure-code").textContent = told.code;
  at("failure-sentence").textContent = told.sentence;
  at("access").hidden = told.code !== "invalid_api_key";
  at("retry").hidden = !told.passes;
  at("keep").hidden = !(recorded && recording);
  at("failure").hidden = false;
  if (!at("access").hidden) at("key").focus();
}

function forgive() {
  at("failure").hidden = true;
}

at("retry").onclick = () => {
  forgive();
  retry();
};
at("dismiss").onclick = forgive;

// --- The key -------------------------------------------------------------------------------

function key() {
  return sessionStorage.getItem(KEY) ?? "";
}

at("access").onsubmit = (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, at("key").value.trim());
  at("key").value = "";
  forgive();
  retry();
};

// --- The server ----------------------------------------------------------------------------

untilReady((state) => {
  server = state;
  at("readiness").textContent = STATES[state];
});
