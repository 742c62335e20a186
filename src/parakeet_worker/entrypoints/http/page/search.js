/** Letters as they are compared: without case and accents, one for one where that is possible. */
export function folded(text) {
  return text.normalize("NFD").replace(/\p{M}/gu, "").toLowerCase();
}

/** Finds a phrase among the words of a transcript and goes from hit to hit. */
export class Search {
  #form;
  #query;
  #hits;
  #buttons;
  #found = [];
  #at = -1;

  /** `words()` gives the words of the transcript, `onHit(word)` brings one into sight. */
  constructor(form, { words, onHit }) {
    this.#form = form;
    this.#query = form.querySelector("#query");
    this.#hits = form.querySelector("#hits");
    this.#buttons = [form.querySelector("#previous"), form.querySelector("#next")];
    this.words = words;
    this.onHit = onHit;
    const [previous, next] = this.#buttons;
    previous.onclick = () => this.#go(-1);
    next.onclick = () => this.#go(1);
    form.onsubmit = (event) => event.preventDefault();
    this.#query.oninput = () => this.refresh({ go: true });
    this.#query.onkeydown = (event) => this.#pressed(event);
  }

  clear() {
    this.#query.value = "";
    this.refresh();
  }

  /** Looks again: the query or the transcript has changed. */
  refresh({ go = false } = {}) {
    const words = this.words();
    const wanted = folded(this.#query.value).trim().replace(/\s+/g, " ");
    this.#unmark();
    this.#found = wanted ? found(words, wanted) : [];
    this.#at = -1;
    paint("hits", this.#found.map((hit) => hit.range));
    for (const button of this.#buttons) button.disabled = !this.#found.length;
    if (go && this.#found.length) this.#go(1);
    else this.#tell(wanted);
  }

  #pressed(event) {
    if (event.key === "Enter") {
      event.preventDefault();
      this.#go(event.shiftKey ? -1 : 1);
    } else if (event.key === "Escape" && this.#query.value) {
      event.preventDefault();
      this.clear();
    }
  }

  #go(step) {
    const count = this.#found.length;
    if (!count) return;
    this.#unmark();
    this.#at = this.#at < 0 ? 0 : (this.#at + step + count) % count;
    const hit = this.#found[this.#at];
    for (const word of hit.words) word.element.classList.add("hit");
    paint("hit", [hit.range]);
    this.onHit(hit.words[0]);
    this.#tell(true);
  }

  #unmark() {
    for (const word of this.#found[this.#at]?.words ?? []) word.element.classList.remove("hit");
    paint("hit", []);
  }

  #tell(asked) {
    const count = this.#found.length;
    if (!asked) this.#hits.value = "";
    else this.#hits.value = count ? `${this.#at + 1} of ${count}` : "no hits";
  }
}

/** Every place of `wanted`, a folded phrase: the words that it touches, and its letters' range. */
function found(words, wanted) {
  let text = "";
  const starts = [];
  for (const word of words) {
    starts.push(text.length);
    text += `${folded(word.text)} `;
  }
  const hits = [];
  let index = 0;
  for (let at = text.indexOf(wanted); at >= 0; at = text.indexOf(wanted, at + wanted.length)) {
    while (starts[index + 1] <= at) index += 1;
    const end = at + wanted.length;
    let last = index;
    while (starts[last + 1] < end) last += 1;
    const range = new Range();
    range.setStart(...letter(words[index], at - starts[index]));
    range.setEnd(...letter(words[last], end - starts[last]));
    hits.push({ words: words.slice(index, last + 1), range });
    index = last;
  }
  return hits;
}

/** Where in a word's text node the letter stands that is number `index` of the folded word. */
function letter({ element, text }, index) {
  let count = 0;
  let at = 0;
  for (const character of text) {
    if (count >= index) break;
    count += folded(character).length;
    at += character.length;
  }
  return [element.firstChild, at];
}

/** Colours ranges where the browser can (`::highlight` in page.css); `.hit` marks words anyway. */
function paint(name, ranges) {
  if ("highlights" in CSS) CSS.highlights.set(name, new Highlight(...ranges));
}
