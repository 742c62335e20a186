import { counted, spoken, written } from "./clock.js";
import { colourOf, speakersOf } from "./speakers.js";

/** Words below this confidence are marked. */
export const SURE = 0.6;
/** Probability from which a sentence's language counts as known. */
const PLAIN = 0.8;
/** Minimum share of the main language among sentences with a known one. */
const MAIN_SHARE = 0.75;
/** How long a word stays highlighted after its end. */
const LINGER_SECONDS = 0.4;

/**
 * The transcript: sentences are appended as they arrive; the word being played is highlighted.
 *
 * Only one word is a tab stop at a time; arrow keys move it.
 */
export class TranscriptView {
  #list;
  #words = [];
  #order = [];
  #lit;
  #stop;
  /** Whether to scroll to the highlighted word; off after manual scrolling. */
  following = true;
  /** Whether the recording can be played. */
  playable = true;

  /** `onPlay(seconds)` is called for a selected word or time. */
  constructor(list, { onPlay }) {
    this.#list = list;
    this.onPlay = onPlay;
    list.addEventListener("click", (event) => this.#clicked(event));
    list.addEventListener("keydown", (event) => this.#pressed(event));
    for (const kind of ["wheel", "touchmove"]) {
      addEventListener(kind, () => (this.following = false), { passive: true });
    }
  }

  /** Every word: {element, start, end, confidence, text}, in the order of the page. */
  get words() {
    return this.#words;
  }

  /** The words that the filter shows. */
  get visible() {
    return this.#words.filter((word) => !hidden(word));
  }

  get sentences() {
    return this.#list.childElementCount;
  }

  get unsure() {
    return this.#words.filter((word) => word.confidence < SURE).length;
  }

  clear() {
    this.#list.replaceChildren();
    this.#words = [];
    this.#order = [];
    this.#lit = this.#stop = undefined;
    this.following = true;
  }

  /** Append a sentence: a segment with its words. */
  append(segment) {
    const sentence = document.createElement("li");
    const time = document.createElement("button");
    time.type = "button";
    time.tabIndex = -1;
    time.className = "time";
    time.dataset.start = segment.start;
    time.textContent = written(segment.start);
    time.setAttribute("aria-label", `${written(segment.start)}, play from ${spoken(segment.start)}`);
    const text = document.createElement("p");
    if (segment.channel) text.append(element("b", "channel", `Channel ${segment.channel}`), " ");
    if (segment.speaker) {
      sentence.dataset.speaker = segment.speaker;
      const label = element("b", "speaker", segment.speaker);
      // Repeated for each sentence: hidden from sight, not from screen readers, within a turn.
      const before = this.#list.lastElementChild?.dataset.speaker;
      if (before === segment.speaker) label.classList.add("spoken");
      text.append(label, " ");
    }
    for (const word of segment.words) text.append(this.#placed(word), " ");
    sentence.append(time, text);
    this.#list.append(sentence);
    if (!this.#stop && this.#words.length) this.#stopAt(this.#words[0]);
  }

  /** Replace the streamed sentences by the final ones; a no-op if they are equal. */
  replace(segments) {
    const shown = this.#words.map((word) => word.text).join(" ");
    const whole = segments.flatMap((segment) => segment.words.map((word) => word.word)).join(" ");
    const labelled = segments.some((segment) => segment.speaker);
    if (shown === whole && this.sentences === segments.length && !labelled) return;
    this.clear();
    for (const segment of segments) this.append(segment);
    const labels = speakersOf({ words: segments.flatMap((segment) => segment.words) });
    for (const line of this.#list.children) {
      const index = labels.indexOf(line.dataset.speaker);
      if (index >= 0) line.dataset.colour = colourOf(index);
    }
  }

  /** Show `names` (a Map) in place of labels. */
  rename(names) {
    for (const line of this.#list.children) {
      const { speaker } = line.dataset;
      if (speaker) line.querySelector(".speaker").textContent = names.get(speaker) ?? speaker;
    }
  }

  /** Show the sentences of some speakers (a Set of labels); of all, if it is empty. */
  filter(shown) {
    for (const line of this.#list.children) {
      line.hidden = shown.size > 0 && !shown.has(line.dataset.speaker);
    }
    const [first] = this.visible;
    if (first && this.#stop && hidden(this.#stop)) this.#stopAt(first);
  }

  /** Set the language for screen readers. */
  speaks(code) {
    if (code) this.#list.lang = code;
    else this.#list.removeAttribute("lang");
  }

  /** Highlight the word at `seconds`. */
  light(seconds) {
    const word = this.#wordAt(seconds);
    if (word === this.#lit) return;
    this.#lit?.element.classList.remove("current");
    this.#lit = word;
    if (!word) return;
    word.element.classList.add("current");
    if (this.following) reveal(word.element);
  }

  #placed({ word: text, start, end, confidence, overlap }) {
    const span = element("span", "word", text);
    const word = { element: span, text, start, end, confidence };
    span.dataset.index = this.#words.length;
    if (confidence < SURE) {
      span.classList.add("unsure");
      span.title = `${Math.round(confidence * 100)} % sure`;
    }
    if (overlap) {
      span.classList.add("overlap");
      span.title = [span.title, "several people speak"].filter(Boolean).join("; ");
    }
    this.#words.push(word);
    this.#order.push(word);
    // Separate channels overlap: a word may start before the previous one.
    if (start < this.#order.at(-2)?.start) this.#order.sort((one, other) => one.start - other.start);
    return span;
  }

  #wordAt(seconds) {
    let low = 0;
    let high = this.#order.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#order[middle].start <= seconds) low = middle + 1;
      else high = middle;
    }
    const word = this.#order[low - 1];
    return word && seconds < word.end + LINGER_SECONDS ? word : undefined;
  }

  #clicked(event) {
    // A click that ends a text selection does not play.
    if (!getSelection().isCollapsed) return;
    const chosen = event.target.closest(".word, .time");
    if (!chosen) return;
    if (chosen.matches(".time")) this.#play(Number(chosen.dataset.start));
    else this.#playWord(this.#words[chosen.dataset.index]);
  }

  #playWord(word) {
    this.#stopAt(word);
    this.#play(word.start);
  }

  #play(seconds) {
    if (!this.playable) return;
    this.following = true;
    this.onPlay(seconds);
  }

  #pressed(event) {
    const word = this.#words[event.target.dataset.index];
    if (!word || event.ctrlKey || event.metaKey || event.altKey) return;
    const target = this.#reached(word, event.key);
    if (event.key === "Enter") this.#playWord(word);
    else if (target) this.focus(target);
    else return;
    event.preventDefault();
  }

  #reached(word, key) {
    const words = this.visible;
    const index = words.indexOf(word);
    const lines = [...this.#list.children].filter((line) => !line.hidden);
    const at = lines.indexOf(word.element.closest("li"));
    const first = (line) => this.#words[line?.querySelector(".word")?.dataset.index];
    return {
      ArrowRight: () => words[index + 1] ?? word,
      ArrowLeft: () => words[index - 1] ?? word,
      ArrowDown: () => first(lines[at + 1]) ?? word,
      ArrowUp: () => first(lines[at - 1]) ?? word,
      Home: () => words[0],
      End: () => words.at(-1),
    }[key]?.();
  }

  /** Scroll to `word`, also while another one plays. */
  show(word) {
    this.following = false;
    this.#stopAt(word);
    reveal(word.element);
  }

  /** Move the keyboard focus to `word`. */
  focus(word) {
    this.#stopAt(word);
    word.element.focus();
    reveal(word.element);
  }

  #stopAt(word) {
    // Removing tabindex from the focused element would lose the focus.
    if (word === this.#stop) return;
    if (this.#stop) {
      for (const name of ["tabindex", "role", "aria-label"]) {
        this.#stop.element.removeAttribute(name);
      }
    }
    this.#stop = word;
    const doubt = word.confidence < SURE ? `, ${word.element.title}` : "";
    word.element.tabIndex = 0;
    // A button only while focused: thousands of buttons would hide the text from screen readers.
    word.element.setAttribute("role", "button");
    word.element.setAttribute("aria-label", `${word.text}, at ${spoken(word.start)}${doubt}`);
  }
}

function hidden(word) {
  return word.element.closest("li").hidden;
}

/** The segments of an answer, each with its words; the answer has them in separate lists. */
export function segmentsOf({ segments, words }) {
  const left = Map.groupBy(words, (word) => word.channel);
  for (const [channel, spokenWords] of left) left.set(channel, spokenWords.values());
  return segments.map((segment) => {
    const own = [];
    const characters = segment.text.length;
    for (let length = -1; length < characters; ) {
      const { value: word, done } = left.get(segment.channel)?.next() ?? { done: true };
      if (done) break;
      own.push(word);
      length += 1 + word.word.length;
    }
    return { ...segment, words: own };
  });
}

/** An answer from the segments received before a connection broke. */
export function partialOf(segments) {
  return {
    text: segments.map((segment) => segment.text).join(" "),
    duration: Math.max(...segments.map((segment) => segment.end)),
    segments,
    words: segments.flatMap((segment) => segment.words),
  };
}

/** A summary: "English · 1:02 · 154 words". */
export function factsOf(answer) {
  const { duration, words } = answer;
  return [languageOf(answer), written(duration), counted(words.length, "word")]
    .filter(Boolean)
    .join(" · ");
}

/** The language, marked as a guess if uncertain; undefined without words. */
function languageOf(answer) {
  if (!answer.language) return undefined;
  if (isMixed(answer)) return "Several languages";
  const name = answer.language[0].toUpperCase() + answer.language.slice(1);
  return answer.language_probability < SURE ? `${name} (a guess)` : name;
}

/** Whether sentences with a known language are in several languages. */
export function isMixed({ segments }) {
  const plain = segments.filter((segment) => segment.language_probability > PLAIN);
  const counts = [...Map.groupBy(plain, (segment) => segment.language).values()];
  return Math.max(0, ...counts.map((group) => group.length)) < MAIN_SHARE * plain.length;
}

/** Scroll `node` into view by the minimum. */
export function reveal(node) {
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  node.scrollIntoView({ block: "nearest", behavior: still ? "auto" : "smooth" });
}

function element(tag, name, text) {
  const made = document.createElement(tag);
  made.className = name;
  made.textContent = text;
  return made;
}
