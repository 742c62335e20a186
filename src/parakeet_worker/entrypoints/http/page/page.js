/** The page: recordings are transcribed one after the other, each from its file to its words. */
import { counted, spoken, written } from "./clock.js";
import { copy, fileOf, save } from "./downloads.js";
import { Failure } from "./failures.js";
import { Player } from "./player.js";
import { Queue } from "./queue.js";
import { servedModel, untilReady } from "./readiness.js";
import { Recorder } from "./recorder.js";
import { Search } from "./search.js";
import { filterText, speakersOf, SpeakersView, withNames } from "./speakers.js";
import { factsOf, isMixed, partialOf, segmentsOf, SURE, TranscriptView } from "./transcript.js";
import { transcribe } from "./transcription.js";

const KEY = "parakeet-key";
const ANNOUNCE_EVERY_MS = 5000;
const STAGES = ["choosing", "recording", "working", "outcome"];
const STATES = {
  ready: "",
  warming: "The model is loading…",
  lost: "The server's engine has stopped.",
  away: "The server cannot be reached.",
};

const at = (id) => document.getElementById(id);

let server;
let recorder;
let shown;
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
  words: () => transcript.visible,
  onHit: (word) => transcript.show(word),
});
const speakers = new SpeakersView(at("speakers"), {
  onRename: (names) => {
    transcript.rename(names);
    announce("Renamed.");
  },
  onFilter: (labels) => {
    transcript.filter(labels);
    search.refresh();
    announce(filterText(labels, speakersOf(shown.answer), shown.names));
  },
});
const queue = new Queue(at("queue"), at("files"), { onChoose: choose });

// --- Stages --------------------------------------------------------------------------------

/** Show one stage; the focus does not stay in a hidden one. */
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

/** Remove the displayed recording from the page. */
function clear() {
  abort?.abort();
  hideFailure();
  shown = undefined;
  player.unload();
  transcript.clear();
  speakers.clear();
  search.clear();
  for (const name of ["words", "downloads", "unsure", "unplayable", "warnings"]) at(name).hidden = true;
  at("file").value = "";
}

function restart() {
  clear();
  queue.clear();
  enter("choosing");
}

/** Whether unsaved transcripts may be discarded. */
function mayDiscard() {
  return !queue.unsaved || confirm("Discard the transcript? It has not been copied or downloaded.");
}

addEventListener("beforeunload", (event) => {
  if (busy() || queue.unsaved) event.preventDefault();
});

// --- Choosing ------------------------------------------------------------------------------

/** Add files to the running queue, or start a new one. */
function begin(files, { own = false } = {}) {
  if (!files.length || document.body.dataset.stage === "recording") return;
  if (busy()) {
    queue.add(files);
    announce(`${counted(files.length, "recording")} added.`);
    return;
  }
  if (!mayDiscard()) return;
  clear();
  queue.clear();
  queue.add(files, { own });
  run();
}

at("choose").onclick = () => at("file").click();
at("file").onchange = (event) => begin([...event.target.files]);
at("another").onclick = () => mayDiscard() && restart();

// Files may be dropped anywhere on the page; the browser would otherwise open them.
addEventListener("dragover", (event) => {
  if (!event.dataTransfer.types.includes("Files")) return;
  event.preventDefault();
  document.body.classList.add("dropping");
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

// Space pauses and resumes, except in controls that use it.
addEventListener("keydown", (event) => {
  if (event.key !== " " || !player.playable) return;
  if (event.target.closest("input, select, textarea, button, summary")) return;
  event.preventDefault();
  player.toggle();
});

// --- Recording -----------------------------------------------------------------------------

at("record").onclick = async () => {
  if (!mayDiscard()) return;
  hideFailure();
  // Disabled while the browser shows its permission prompt.
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
  const file = await ended.end();
  enter("choosing");
  begin([file], { own: true });
}

at("stop").onclick = finish;
at("discard").onclick = () => {
  recorder.discard();
  recorder = undefined;
  restart();
};

// --- Transcribing --------------------------------------------------------------------------

/** Transcribe all waiting recordings of the queue, then show the first result. */
async function run() {
  let entry;
  while ((entry = queue.next())) {
    if (!(await transcribeEntry(entry))) return;
  }
  if (queue.size > 1) choose(queue.first);
}

/** Transcribe one recording; returns false if it was cancelled. */
async function transcribeEntry(entry) {
  clear();
  shown = entry;
  abort = new AbortController();
  at("working-title").textContent = entry.file.name;
  enter("working");
  transcript.playable = true;
  player.load(entry.file);
  const { signal } = abort;
  try {
    await ready(signal);
    doing("Uploading…");
    const hooks = { key: key(), signal, onUpload: uploading };
    for await (const event of transcribe(entry.file, options(), hooks)) take(entry, event);
    conclude(entry);
  } catch (failure) {
    if (signal.aborted) return false;
    interrupted(entry, failure);
  }
  return true;
}

/** Show a failure, with the segments received before it. */
function interrupted(entry, failure) {
  queue.failed(entry, failure);
  if (entry.segments.length) {
    entry.answer = partialOf(entry.segments);
    conclude(entry);
  } else {
    player.unload();
    enter("choosing");
  }
  retry = () => {
    queue.retry(entry);
    run();
  };
  fail(failure, entry);
}

/** Wait for the model: requests before that would be rejected. */
async function ready(signal) {
  if (server !== "warming") return;
  doing("Waiting for the model to load…");
  await untilReady(() => {}, signal);
}

function options() {
  return {
    language: at("language").value,
    channels: at("separate").checked ? "separate" : "",
    track: at("track").value,
    speakers: at("speakers-option").value,
  };
}

function take(entry, { name, document: data }) {
  if (name === "segment") {
    entry.segments.push(data);
    transcript.append(data);
    at("words").hidden = false;
    search.refresh();
    progress(entry, data.end);
  } else if (name === "progress") {
    progress(entry, data.audio_seconds);
  } else if (name === "result") {
    entry.answer = data;
    queue.done(entry);
  }
}

/** Show an activity without a known end; screen readers announce the change. */
function doing(text) {
  at("stage").textContent = text;
  at("progress").removeAttribute("value");
  announce(text);
}

function uploading(fraction) {
  at("stage").textContent = fraction < 1 ? `Uploading, ${Math.round(fraction * 100)} %` : "Transcribing…";
  if (fraction < 1) at("progress").value = fraction;
  else at("progress").removeAttribute("value");
}

let announced = 0;

function progress(entry, seconds) {
  const whole = player.duration;
  const known = Number.isFinite(whole);
  at("stage").textContent = `Transcribed ${written(seconds)}${known ? ` of ${written(whole)}` : ""}`;
  if (known) at("progress").value = Math.min(1, seconds / whole);
  queue.progress(entry, known ? `${Math.round((100 * seconds) / whole)} %` : written(seconds));
  if (performance.now() - announced < ANNOUNCE_EVERY_MS) return;
  announced = performance.now();
  announce(`Transcribed ${spoken(seconds)}, ${counted(transcript.sentences, "sentence")} so far.`);
}

at("cancel").onclick = () => {
  restart();
  announce("Cancelled.");
};

// --- The outcome ---------------------------------------------------------------------------

/** Show the result, or the failure, of a recording of the queue. */
function choose(entry) {
  if (busy()) return;
  clear();
  shown = entry;
  if (entry.answer) {
    transcript.playable = true;
    player.load(entry.file);
    conclude(entry);
  }
  if (entry.failure) fail(entry.failure, entry);
}

function conclude(entry) {
  const { answer, file, own } = entry;
  transcript.replace(segmentsOf(answer));
  transcript.speaks(codeOf(answer));
  entry.names ??= new Map();
  speakers.show(speakersOf(answer), entry.names);
  transcript.rename(entry.names);
  player.lasts(answer.duration);
  search.refresh();
  at("outcome-title").textContent = file.name;
  at("facts").textContent = factsOf(answer);
  at("downloads").hidden = false;
  at("audio").hidden = !own;
  at("words").hidden = !answer.words.length;
  warn(answer);
  explain(transcript.unsure);
  queue.current(entry);
  enter("outcome");
  announce(`Done. ${factsOf(answer)}.`);
}

/** List the warnings; those with a time can be played. */
function warn({ warnings = [], words }) {
  const lines = warnings.map((warning) =>
    warning.start === undefined ? [warning.message] : [`${warning.message} `, placeOf(warning)],
  );
  if (!words.length) lines.unshift(["No words were found in this recording."]);
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
  button.setAttribute("aria-label", `${written(start)}, play from ${spoken(start)}`);
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

/** The language's code for `lang`; undefined if it is a guess, or one of several. */
function codeOf(answer) {
  const name = answer.language?.toLowerCase();
  if (!name || answer.language_probability < SURE || isMixed(answer)) return undefined;
  return [...at("language").options].find((option) => option.text.toLowerCase() === name)?.value;
}

function unplayable() {
  transcript.playable = false;
  at("unplayable").hidden = false;
}

for (const button of at("downloads").querySelectorAll("[data-format]")) {
  button.onclick = async () => {
    try {
      const answer = withNames(shown.answer, shown.names);
      save(await fileOf(answer, button.dataset.format, shown.file.name, key()));
      queue.saved(shown);
      announce(`${button.textContent} file saved.`);
    } catch (failure) {
      retry = () => button.click();
      fail(failure, shown);
    }
  };
}
at("copy").onclick = async () => {
  await copy(withNames(shown.answer, shown.names).text);
  queue.saved(shown);
  announce("Copied.");
};
at("audio").onclick = at("keep").onclick = () => save(shown.file);

// --- Failures ------------------------------------------------------------------------------

function fail(failure, entry) {
  // An error of the page itself: the console has the stack.
  if (!(failure instanceof Failure)) console.error(failure);
  const known =
    failure instanceof Failure ? failure : new Failure({ error: `${failure}`, code: "page_failed" });
  const meaning = known.code === "invalid_api_key" && key() ? known.as("wrong_api_key") : known;
  at("failure-title").textContent = meaning.title;
  at("failure-advice").textContent = meaning.advice;
  at("failure-name").textContent = entry?.file.name ?? "";
  at("failure-code").textContent = known.code;
  at("failure-sentence").textContent = known.sentence;
  at("access").hidden = known.code !== "invalid_api_key";
  at("retry").hidden = !known.passes;
  at("keep").hidden = !entry?.own;
  at("failure").hidden = false;
  if (!at("access").hidden) at("key").focus();
}

function hideFailure() {
  at("failure").hidden = true;
}

at("retry").onclick = () => {
  hideFailure();
  retry();
};
at("dismiss").onclick = hideFailure;

// --- The key -------------------------------------------------------------------------------

function key() {
  return sessionStorage.getItem(KEY) ?? "";
}

at("access").onsubmit = (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, at("key").value.trim());
  at("key").value = "";
  hideFailure();
  retry();
};

// --- The server ----------------------------------------------------------------------------

untilReady(async (state) => {
  server = state;
  at("readiness").textContent = STATES[state];
  if (state === "ready") describe(await servedModel());
});

function describe(model) {
  if (!model) return;
  const demo = /(^|\/)demo(\.\w+)?$/.test(model);
  at("model").textContent = demo
    ? "Audio or video. This server has the demo model: for trials, with many errors."
    : `Audio or video, in any of 25 European languages. Model: ${model}.`;
}
