/** Normalise for comparison: without case and accents, one character each where possible. */
export function folded(text) {
  return text.normalize("NFD").replace(/\p{M}/gu, "").toLowerCase();
}

/** Finds a phrase in the words of a transcript and steps through the hits. */
export class Search {
  #form;
  #query;
  #hits;
  #buttons;
  #matches = [];
  #at = -1;

  /** `words()` returns the words of the transcript, `onHit(word)` scrolls to one. */
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

  /** Search again after a change of the query or the transcript. */
  refresh({ go = false } = {}) {
    const words = this.words();
    const query = folded(this.#query.value).trim().replace(/\s+/g, " ");
    this.#unmark();
    this.#matches = query ? matches(words, query) : [];
    this.#at = -1;
    paint("hits", this.#matches.map((hit) => hit.range));
    for (const button of this.#buttons) button.disabled = !this.#matches.length;
    if (go && this.#matches.length) this.#go(1);
    else this.#report(query);
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
    const count = this.#matches.length;
    if (!count) return;
    this.#unmark();
    this.#at = this.#at < 0 ? 0 : (this.#at + step + count) % count;
    const hit = this.#matches[this.#at];
    for (const word of hit.words) word.element.classList.add("hit");
    paint("hit", [hit.range]);
    this.onHit(hit.words[0]);
    this.#report(true);
  }

  #unmark() {
    for (const word of this.#matches[this.#at]?.words ?? []) word.element.classList.remove("hit");
    paint("hit", []);
  }

  #report(active) {
    const count = this.#matches.length;
    if (!active) this.#hits.value = "";
    else this.#hits.value = count ? `${this.#at + 1} of ${count}` : "no hits";
  }
}

/** All matches of the folded phrase `query`: the words in them and the range of characters. */
function matches(words, query) {
  let text = "";
  const starts = [];
  for (const word of words) {
    starts.push(text.length);
    text += `${folded(word.text)} `;
  }
  const hits = [];
  let index = 0;
  for (let at = text.indexOf(query); at >= 0; at = text.indexOf(query, at + query.length)) {
    while (starts[index + 1] <= at) index += 1;
    const end = at + query.length;
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

/** Position in a word's text node of character `index` of the folded word. */
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

/** Highlight ranges if supported (`::highlight` in page.css); `.hit` always marks the words. */
function paint(name, ranges) {
  if ("highlights" in CSS) CSS.highlights.set(name, new Highlight(...ranges));
}
