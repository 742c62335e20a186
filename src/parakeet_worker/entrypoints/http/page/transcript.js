import { counted, spoken, written } from "./clock.js";

/** A word that the model gave less than this is marked. */
export const SURE = 0.6;
/** Of a sentence's language: from here on it is taken as known. */
const PLAIN = 0.8;
/** Of the sentences with a plain language, what the main one has at least. */
const MAIN_SHARE = 0.75;
/** How long a word stays lit after its end while nothing else is said. */
const LINGER_SECONDS = 0.4;

/**
 * The words on the page: sentence by sentence as they come, lit as they are heard.
 *
 * Only one word is a tab stop at a time; arrow keys move it.
 */
export class TranscriptView {
  #list;
  #words = [];
  #order = [];
  #lit;
  #stop;
  /** Whether the lit word is kept in sight; off once the reader scrolls by hand. */
  following = true;
  /** Whether a click or Enter can play anything. */
  playable = true;

  /** `onPlay(seconds)` is called for a word, or a sentence's time, that was chosen. */
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

  /** Adds one sentence: a segment of the wire with its words in it. */
  append(segment) {
    const sentence = document.createElement("li");
    const time = document.createElement("button");
    time.type = "button";
    time.tabIndex = -1;
    time.className = "time";
    time.dataset.start = segment.start;
    time.textContent = written(segment.start);
    time.setAttribute("aria-label", `Play from ${spoken(segment.start)}`);
    const text = document.createElement("p");
    if (segment.channel) text.append(element("b", "channel", `Channel ${segment.channel}`), " ");
    for (const word of segment.words) text.append(this.#placed(word), " ");
    sentence.append(time, text);
    this.#list.append(sentence);
    if (!this.#stop && this.#words.length) this.#stopAt(this.#words[0]);
  }

  /** The whole in place of what came in parts; nothing moves where it says the same. */
  replace(segments) {
    const shown = this.#words.map((word) => word.text).join(" ");
    const whole = segments.flatMap((segment) => segment.words.map((word) => word.word)).join(" ");
    if (shown === whole && this.sentences === segments.length) return;
    this.clear();
    for (const segment of segments) this.append(segment);
  }

  /** Says to a screen reader in which language to read. */
  speaks(code) {
    if (code) this.#list.lang = code;
    else this.#list.removeAttribute("lang");
  }

  /** Lights the word that is heard at `seconds`. */
  light(seconds) {
    const word = this.#heardAt(seconds);
    if (word === this.#lit) return;
    this.#lit?.element.classList.remove("heard");
    this.#lit = word;
    if (!word) return;
    word.element.classList.add("heard");
    if (this.following) reveal(word.element);
  }

  #placed({ word: text, start, end, confidence }) {
    const span = element("span", "word", text);
    const word = { element: span, text, start, end, confidence };
    span.dataset.index = this.#words.length;
    if (confidence < SURE) {
      span.classList.add("unsure");
      span.title = `${Math.round(confidence * 100)} % sure`;
    }
    this.#words.push(word);
    this.#order.push(word);
    // Channels that are heard apart speak at once: then a word may begin before the last one did.
    if (start < this.#order.at(-2)?.start) this.#order.sort((one, other) => one.start - other.start);
    return span;
  }

  #heardAt(seconds) {
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
    // Words that are being selected to be copied were not meant to be played.
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
    if (event.key === "Enter" || event.key === " ") this.#playWord(word);
    else if (target) this.focus(target);
    else return;
    event.preventDefault();
  }

  #reached(word, key) {
    const index = Number(word.element.dataset.index);
    const first = (line) => this.#words[line?.querySelector(".word")?.dataset.index];
    const line = word.element.closest("li");
    return {
      ArrowRight: () => this.#words[index + 1] ?? word,
      ArrowLeft: () => this.#words[index - 1] ?? word,
      ArrowDown: () => first(line.nextElementSibling) ?? word,
      ArrowUp: () => first(line.previousElementSibling) ?? word,
      Home: () => this.#words[0],
      End: () => this.#words.at(-1),
    }[key]?.();
  }

  /** Brings `word` into sight, also while another one plays. */
  show(word) {
    this.following = false;
    this.#stopAt(word);
    reveal(word.element);
  }

  /** Moves the keyboard's place to `word`. */
  focus(word) {
    this.#stopAt(word);
    word.element.focus();
    reveal(word.element);
  }

  #stopAt(word) {
    if (this.#stop) {
      for (const name of ["tabindex", "role", "aria-label"]) {
        this.#stop.element.removeAttribute(name);
      }
    }
    this.#stop = word;
    const doubt = word.confidence < SURE ? `, ${word.element.title}` : "";
    word.element.tabIndex = 0;
    // A button only while the keyboard is on it: thousands of them would hide the text.
    word.element.setAttribute("role", "button");
    word.element.setAttribute("aria-label", `${word.text}, at ${spoken(word.start)}${doubt}`);
  }
}

/** The segments of a whole answer, each with its words: `segments` and `words` stand apart there. */
export function segmentsOf({ segments, words }) {
  const left = Map.groupBy(words, (word) => word.channel);
  for (const [channel, said] of left) left.set(channel, said.values());
  return segments.map((segment) => {
    const own = [];
    const wanted = segment.text.length;
    for (let length = -1; length < wanted; ) {
      const { value: word, done } = left.get(segment.channel)?.next() ?? { done: true };
      if (done) break;
      own.push(word);
      length += 1 + word.word.length;
    }
    return { ...segment, words: own };
  });
}

/** What a reader wants to know first: "English · 1:02 · 154 words". */
export function factsOf(answer) {
  const { duration, words } = answer;
  return [languageOf(answer), written(duration), counted(words.length, "word")]
    .filter(Boolean)
    .join(" · ");
}

/** The name of the language, with what is to be known about it; none without words. */
function languageOf(answer) {
  if (!answer.language) return undefined;
  if (isMixed(answer)) return "Several languages";
  const name = answer.language[0].toUpperCase() + answer.language.slice(1);
  return answer.language_probability < SURE ? `${name} (a guess)` : name;
}

/** Whether the sentences whose language is plain are in several. */
export function isMixed({ segments }) {
  const plain = segments.filter((segment) => segment.language_probability > PLAIN);
  const counts = [...Map.groupBy(plain, (segment) => segment.language).values()];
  return Math.max(0, ...counts.map((group) => group.length)) < MAIN_SHARE * plain.length;
}

/** Scrolls as little as brings `node` into sight. */
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
