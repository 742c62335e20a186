/** The recordings of one run, as a list with the state of each. */
export class Queue {
  #section;
  #list;
  #entries = [];

  /** `onChoose(entry)` is called for a selected recording that has a result or a failure. */
  constructor(section, list, { onChoose }) {
    this.#section = section;
    this.#list = list;
    this.onChoose = onChoose;
  }

  get size() {
    return this.#entries.length;
  }

  get first() {
    return this.#entries[0];
  }

  /** Whether a transcript has been neither copied nor downloaded. */
  get unsaved() {
    return this.#entries.some((entry) => entry.answer?.words.length && !entry.saved);
  }

  clear() {
    this.#entries = [];
    this.#list.replaceChildren();
    this.#section.hidden = true;
  }

  /** Append files; `own` marks recordings of the page's microphone. */
  add(files, { own = false } = {}) {
    for (const file of files) {
      const entry = { file, own, segments: [], state: "waiting" };
      entry.button = this.#buttonOf(entry);
      this.#entries.push(entry);
      this.#show(entry, "waiting");
    }
    this.#section.hidden = this.size < 2;
  }

  /** The next waiting entry, which counts as started; undefined if there is none. */
  next() {
    const entry = this.#entries.find(({ state }) => state === "waiting");
    if (entry) {
      entry.state = "running";
      entry.segments = [];
      entry.answer = entry.failure = undefined;
    }
    return entry;
  }

  retry(entry) {
    entry.state = "waiting";
    this.#show(entry, "waiting");
  }

  progress(entry, text) {
    this.#show(entry, text);
  }

  done(entry) {
    entry.state = "done";
    this.#show(entry, "done");
  }

  failed(entry, failure) {
    entry.state = "failed";
    entry.failure = failure;
    this.#show(entry, "failed");
  }

  saved(entry) {
    entry.saved = true;
  }

  /** Mark the displayed entry. */
  current(entry) {
    for (const { button } of this.#entries) button.removeAttribute("aria-current");
    entry.button.setAttribute("aria-current", "true");
  }

  #buttonOf(entry) {
    const button = document.createElement("button");
    button.type = "button";
    button.onclick = () => entry.answer || entry.failure ? this.onChoose(entry) : undefined;
    const name = document.createElement("span");
    name.textContent = entry.file.name;
    const state = document.createElement("span");
    state.className = "state";
    button.append(name, state);
    const item = document.createElement("li");
    item.append(button);
    this.#list.append(item);
    return button;
  }

  #show(entry, text) {
    entry.button.querySelector(".state").textContent = text;
  }
}
