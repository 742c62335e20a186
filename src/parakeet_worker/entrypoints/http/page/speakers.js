import { counted } from "./clock.js";

const COLOURS = 8;
const NAME_CHARACTERS = 100;

/** The colour of a speaker: the same in the list and in the transcript. */
export function colourOf(index) {
  return `${index % COLOURS}`;
}

/** Labels of an answer's speakers, in the order in which they speak. */
export function speakersOf({ words }) {
  return [...new Set(words.map((word) => word.speaker).filter(Boolean))];
}

/** The list of speakers, in which each can be renamed and the transcript limited to some. */
export class SpeakersView {
  #list;
  #labels = [];
  #names = new Map();
  #shown = new Set();

  /** `onRename(names)` and `onFilter(shown)` are called with a Map and a Set of labels. */
  constructor(list, { onRename, onFilter }) {
    this.#list = list;
    this.onRename = onRename;
    this.onFilter = onFilter;
  }

  /** List `labels`; `names` maps renamed ones to their names and is changed by the list. */
  show(labels, names) {
    this.#labels = labels;
    this.#names = names;
    this.#shown.clear();
    this.#list.replaceChildren(...labels.map((label, index) => this.#row(label, index)));
    this.#list.hidden = !labels.length;
  }

  clear() {
    this.show([], new Map());
  }

  #row(label, index) {
    const row = document.createElement("li");
    row.dataset.colour = colourOf(index);
    const name = document.createElement("input");
    name.type = "text";
    name.maxLength = NAME_CHARACTERS;
    name.autocomplete = "off";
    name.spellcheck = false;
    name.value = this.#names.get(label) ?? label;
    name.setAttribute("aria-label", `Name of ${label}`);
    name.onchange = () => this.#renamed(label, name, only);
    const only = document.createElement("button");
    only.type = "button";
    only.textContent = "Only";
    only.setAttribute("aria-pressed", "false");
    only.setAttribute("aria-label", `Only ${name.value}`);
    only.onclick = () => this.#toggled(label, only);
    row.append(name, only);
    return row;
  }

  #renamed(label, input, only) {
    const name = input.value.replace(/\s+/g, " ").trim();
    if (name && name !== label) this.#names.set(label, name);
    else this.#names.delete(label);
    input.value = this.#names.get(label) ?? label;
    only.setAttribute("aria-label", `Only ${input.value}`);
    this.onRename(this.#names);
  }

  #toggled(label, button) {
    if (!this.#shown.delete(label)) this.#shown.add(label);
    button.setAttribute("aria-pressed", `${this.#shown.has(label)}`);
    this.onFilter(this.#shown);
  }
}

/** The announcement for screen readers after a change of the filter. */
export function filterText(shown, labels, names) {
  if (!shown.size) return "All speakers are shown.";
  const spoken = labels.filter((label) => shown.has(label)).map((label) => names.get(label) ?? label);
  return `${counted(spoken.length, "speaker")} shown: ${spoken.join(", ")}.`;
}

/** The answer with the names that speakers were given. */
export function withNames(answer, names) {
  if (!names.size) return answer;
  const named = (part) =>
    part.speaker ? { ...part, speaker: names.get(part.speaker) ?? part.speaker } : part;
  return {
    ...answer,
    text: answer.text.split("\n").map((line) => lineWithName(line, names)).join("\n"),
    segments: answer.segments.map(named),
    words: answer.words.map(named),
  };
}

/** A line of the text: a channel, a label and a colon before the words. */
function lineWithName(line, names) {
  const channel = /^Channel \d+, /.exec(line)?.[0] ?? "";
  const rest = line.slice(channel.length);
  const label = [...names.keys()].find((each) => rest.startsWith(`${each}: `));
  return label ? `${channel}${names.get(label)}${rest.slice(label.length)}` : line;
}
