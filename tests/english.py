"""Finds idioms in source, comments, messages, documents and names.

    python tests/english.py PATH...     # without a path: every file under version control
    python tests/english.py --count PATH...

Prints `file:line: text (write: advice)` and the count per file. The exit status is 1 if anything
was found. Texts are comments, string literals and documents; names are Python identifiers, each
reported once per file. `ALLOWED` lists exact phrases that are exempt, each with the reason.
"""

import argparse
import io
import keyword
import re
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]

_SUBJECT = "name the subject: the process, client, caller, job, thread"
_TRANSCRIBE = "transcribe, decode, detect"
_REPORT = "report, pass, configure; for text: contain, read"
_SPAN = "span, interval, part"

# A space stands for any white space, so that a line break hides nothing.
IDIOMS = {
    # Persons in place of processes.
    r"whoever|whomever|nobody|no one|some(body|one)|every(body|one)|anybody": _SUBJECT,
    r"he|his|him|himself|she|herself": _SUBJECT,
    r"ours|theirs|hers|of (yours|its own accord)": _SUBJECT,
    r"(whose|its|his|their|your|caller's) turn": "while the server waits for the client",
    r"(?<!self-)(mis|over)?hears?|(mis|un|over)?heard|(mis)?hearing|hearer": _TRANSCRIBE,
    r"listens? to|does not listen|do not listen": "receive, subscribe; for sockets: listen on",
    r"said|says?|saying": _REPORT,
    r"told|tells?|telling|untold": _REPORT,
    r"asks?|asked|asking": "request, query, prompt",
    r"wants?|wanted|wishes|wished|wish": "request, require, need",
    r"knows|knew|(do|does|did) not know|cannot know": "has, records, supports",
    r"thinks|believes?|believed|hopes|hoped|cares?|cared|minds": "assume, expect, check",
    r"remembers?|remembered|forgets?|forgot|forgotten": "store, cache; omit, discard",
    r"forgives?|forgiven|forgiving": "tolerate",
    r"complains?|complained|complaints?": "error message, warning; report an error",
    r"(?<!/)promises|promised": "guarantee, require",
    r"manners|polite(ly|ness)?|rude(ly)?|honest(ly)?|guilty|innocent": "state the rule",
    r"looks? after|looked after|takes? care of|in charge of": "manage, poll, handle",
    r"heeds?|heeded|obeys?|obeyed": "honor, follow",
    r"none of its business|business": "not its responsibility; or leave out",
    r"speaks? (like|for)": "describe the behaviour",
    r"stands?|stood|standing": "idle, is, exists; preallocated",
    r"lets? go|let alone|lent": "release; not to mention; allocate",
    r"by (himself|themselves)|of (its|their) own accord": "alone, automatically",
    r"laggards?|twins?|friends?|guests?|strangers?": "the field's term",
    # Idioms and metaphors.
    r"in vain|to no avail|for nothing": "without effect",
    r"aside": "temporary, separately, except for",
    r"besides|beside": "also, next to, together with",
    r"mends?|mended|mending": "fix, repair, merge",
    r"rubbish": "overflow slot, invalid data",
    r"the plan|the plan's": "describe the design; for batches: the batch plan",
    r"on (its|their|his) way|underway|under way": "in transit, in progress",
    r"at once": "immediately, together, concurrently",
    r"goes on|go on|went on|going on|goes by|gone|goes away": "continue, lost, closed",
    r"gives? up|gave up|given up|giving up": "abandon, stop retrying",
    r"begun": "started",
    r"doors?": "transport, route, entry point",
    r"hands? (over|out|on|back)|handed (over|out|on|back)": "pass, return, allocate",
    r"holds? it to|held (against|to it)|holds? against": "compare with, enforce",
    r"for good|once and for all|for ever": "permanently",
    r"comes? to (grief|pass|light)|comes? true|come of it": "fail, occur",
    r"on purpose": "deliberately, intentionally",
    r"sees? to it|at first sight|in sight": "ensure",
    r"lies? in wait|lays? hands|at hand|to hand|in hand": "available",
    r"as good as|much the same|all the same[.,;:]|none the less|all but": "almost, nevertheless",
    r"so to (speak|say)|as it were|if need be|that is to say": "leave out",
    r"lest|whence|whereupon|thereof|therein|whereof|wherein|hither|thither": "plain conjunctions",
    r"quietly|loudly": "without a warning; with a warning",
    r"in earnest|in good time|out of hand|by and by|to and fro": "leave out",
    r"makes? (it )?plain|made plain": "show, state",
    r"learns (of|that)|learned (of|that)": "receive, read",
    r"in its place|in their stead|instead of it": "instead; replace",
    r"over and over|time and again|once more": "repeatedly, again",
    r"nowhere( else)?": "not ... anywhere",
    r"dead and buried|buried|zombies and|ghosts?": "ended, removed",
    r"a way in|(the|every|each|larger) ways? in|lets? in|on the way":
        "entry point, route; accept; in transit, as it arrives",
    r"odds and ends|drawers?|crumbs?|grab bags?": "name the parts",
    r"(takes?|took|taking) (a|its|their) seats?|sits?|sat|sitting": "is, are; occupy a slot",
    r"drown(s|ed|ing)?|flood(s|ed|ing)?|thundering herd": "hide, exceed; many requests at a time",
    r"(un)?lucky|by luck|with luck": "random, by chance; state why",
    r"letter by letter|word for word|to the letter": "literally, unchanged",
    r"dares?|afraid|fears?|surpris(es?|ed|ing)|suffers?|suffered|rescue[ds]?": "state the fact",
    r"(we|let)'\w+|we (use|need|have|can|must|should|do|expect|assume|want)": _SUBJECT,
    r"however (long|loud|short|much|many|often|small|large|big|fast|slow)": "of any length, size",
    r"what (is|was|are|were|has|had|have) (not |to be |still |now |also )*"
    r"(\w+ed|sent|known|built|kept|left|lost|read|written|found|given|taken|put|done|spoken|meant)":
        "name the thing: the samples, the request, the result",
    # Terms of the project's past; CONTRIBUTING.md has the glossary.
    r"seams?|bridges?": "cut, overlap",
    r"hiss(es)?": "noise",
    r"likeness": "similarity",
    r"stretch(es)?": _SPAN,
    r"pieces? of (a |the )?(audio|sound|speech|recording)": "chunk",
    r"tid(y|ied|ies)": "delete, clean up",
}  # fmt: skip

# Parts of Python names, between underscores, beyond those that IDIOMS finds in the split name.
NAME_PARTS = {
    r"asked|told|said|aside|rubbish|mended|heard": "temporary, message, value, request",
    r"rising": "monotonic",
    r"splice[ds]?": "merge",
}

# Whole Python names: common words that mean nothing as the name of a value.
NAMES = {
    r"found|given|asked|told|said|gone|thing|things": "result, value, request, message",
}

ALLOWED = {
    "--beside": "an option of the command line",
    'aria-live="polite"': "an attribute of HTML",
    "`segments` and `seams`": "earlier names of fields",
    "was `hear`": "the same",
    'said "hello': "spoken in a test",
    "He said привет and went away at once": "spoken in a test",
    "I don't know what to say": "spoken in a test",
    "she said, ": "spoken in a test",
    "that is what she said": "spoken in a test",
    "That is what she said, and I think she": "spoken in a test",
    "she used to say": "spoken in a test",
    "told me about that morning so often that I sometimes believe I": "spoken in a test",
    "waved at everybody": "spoken in a test",
    "stood along the fence": "spoken in a test",
    "Nobody spoke": "spoken in a test",
    "said much too fast to be read": "spoken in a test",
    "forget gate": "a gate of an LSTM",
    "HE BEGAN A CONFUSED COMPLAINT": "a transcript of LibriSpeech",
    "he'll realise": "spelling under test",
    "he will realize": "spelling under test",
}
"""Exact phrases that are exempt, with the reason. A space stands for any white space."""

EXCLUDED = {
    "LICENSE": "the texts of the licences",
    "requirements": "written by uv",
    "samples": "recordings and their transcripts",
    "bench/results": "measured data",
    "training/words.toml": "words in 25 languages",
    "training/evaluation.json": "measured data",
    "bench/gpu/demo_configuration.json": "tokens of a model",
    "src/parakeet_worker/checkpoints/clip.txt": "a transcript",
    "tests/english.py": "the list itself",
    "tests/test_english.py": "its examples",
    "docs/images": "images",
}

_TEXT_SUFFIXES = {".py", ".md", ".js", ".html", ".css", ".json", ".toml", ".yml", ".yaml", ".ini"}
_TEXT_SUFFIXES |= {".sh", ".txt", ".svg", ".webmanifest", ""}


@dataclass(frozen=True, slots=True)
class Finding:
    path: str
    line: int
    text: str
    advice: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text} (write: {self.advice})"


class _Patterns:
    """The expressions of a table; one that unites them finds their matches in a tenth of the time.

    It stops at the first alternative, so advice comes from the single ones.
    """

    def __init__(self, table: dict[str, str], *, whole: bool = False) -> None:
        edges = ("^(?:", ")$") if whole else (r"(?<![\w'])(?=\w)(?:", r")(?![\w])")

        def compiled(pattern: str) -> re.Pattern[str]:
            return re.compile(edges[0] + pattern.replace(" ", r"\s+") + edges[1], re.IGNORECASE)

        self._any = compiled("|".join(table))
        self._each = [(compiled(pattern), advice) for pattern, advice in table.items()]

    def matches(self, text: str) -> Iterator[tuple[re.Match[str], str]]:
        if self._any.search(text):
            for pattern, advice in self._each:
                for match in pattern.finditer(text):
                    yield match, advice


_IDIOMS = _Patterns(IDIOMS)
_IN_NAMES = _Patterns(IDIOMS | NAME_PARTS)
_NAMES = _Patterns(NAMES, whole=True)
_ALLOWED = [
    re.compile(re.escape(phrase).replace(r"\ ", r"\s+"))
    for phrase in sorted(ALLOWED, key=len, reverse=True)
]


def check_text(text: str, path: str) -> Iterator[Finding]:
    """Findings in prose; the line numbers are those of `text`."""
    text = _without_allowed(text)
    for match, advice in _IDIOMS.matches(text):
        shown = " ".join(match[0].split())
        yield Finding(path, text.count("\n", 0, match.start()) + 1, shown, advice)


def check_python(source: str, path: str) -> Iterator[Finding]:
    """Findings in the comments, string literals and names of a module."""
    prose, names = _split(source)
    yield from check_text(prose, path)
    for name, line in names.items():
        for shown, advice in _in_name(name):
            yield Finding(path, line, shown, advice)


@cache
def _in_name(name: str) -> list[tuple[str, str]]:
    """What to report of a name, with advice."""
    for match, advice in _IN_NAMES.matches(_without_allowed(_words(name))):
        return [(f"{name} [{match[0]}]", advice)]
    return [(name, advice) for _, advice in _NAMES.matches(name)]


def check_file(path: Path) -> list[Finding]:
    shown = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
    text = path.read_text(encoding="utf-8")
    check = check_python if _is_python(path, text) else check_text
    return sorted(check(text, shown), key=lambda finding: finding.line)


def files(paths: Sequence[Path]) -> list[Path]:
    """Text files under version control, or new and not ignored, below `paths`."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--"]
    listed = subprocess.run(
        [*command, *map(str, paths)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    names = sorted(set(filter(None, listed.stdout.split("\0"))))
    return [ROOT / name for name in names if _is_checked(name)]


def _is_checked(name: str) -> bool:
    if any(name == excluded or name.startswith(f"{excluded}/") for excluded in EXCLUDED):
        return False
    path = ROOT / name
    return path.suffix in _TEXT_SUFFIXES and path.is_file() and path.name != ".gitignore"


def _is_python(path: Path, text: str) -> bool:
    return path.suffix == ".py" or (not path.suffix and "python" in text.partition("\n")[0])


def _without_allowed(text: str) -> str:
    for phrase in _ALLOWED:
        text = phrase.sub(lambda match: re.sub(r"\S", " ", match[0]), text)
    return text


def _split(source: str) -> tuple[str, dict[str, int]]:
    """The prose of a module at its lines and columns, and its names with their first lines."""
    lines = [" " * len(line) for line in source.split("\n")]
    names: dict[str, int] = {}
    previous = ""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        kind = tokenize.tok_name[token.type]
        if kind in {"COMMENT", "STRING", "FSTRING_MIDDLE"}:
            _copy(lines, token, _prose(token.string, kind))
        elif kind == "NAME" and not _foreign(token, previous):
            names.setdefault(token.string, token.start[0])
        previous = token.string
    return "\n".join(lines), names


def _prose(text: str, kind: str) -> str:
    """A comment or literal without its marks, in the same number of characters."""
    if kind == "COMMENT":
        return text.replace("#", " ")
    blank = lambda match: " " * len(match[0])  # noqa: E731
    text = re.sub(r"^[A-Za-z]*(\"\"\"|'''|\"|')", blank, text)
    text = re.sub(r"(\"\"\"|'''|\"|')$", blank, text)
    return re.sub(r"\\[nrt]", "  ", text)


def _copy(lines: list[str], token: tokenize.TokenInfo, prose: str) -> None:
    row, column = token.start
    for offset, part in enumerate(prose.split("\n")):
        start = column if offset == 0 else 0
        line = lines[row - 1 + offset]
        lines[row - 1 + offset] = line[:start] + part + line[start + len(part) :]


def _foreign(token: tokenize.TokenInfo, previous: str) -> bool:
    """Whether the project did not choose the name: `@given`, `HTTPStatus.GONE`, `while`."""
    fixed = keyword.iskeyword(token.string) or token.line.startswith("from hypothesis")
    fixed |= previous == "." and token.string == "tell"
    return fixed or previous == "@" or (previous == "." and token.string.isupper())


def _words(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).replace("_", " ").strip().lower()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("paths", nargs="*", type=Path, default=[ROOT])
    parser.add_argument("--count", action="store_true", help="only the count per file")
    parser.add_argument("--idioms", action="store_true", help="the count per text instead")
    options = parser.parse_args(arguments)
    paths = [path if path.is_absolute() else Path.cwd() / path for path in options.paths]
    findings = [finding for path in files(paths) for finding in check_file(path)]
    by = Counter(finding.text if options.idioms else finding.path for finding in findings)
    lines = [] if options.count or options.idioms else [*map(str, findings)]
    lines += [f"{count:6} {label}" for label, count in by.most_common()]
    sys.stdout.write("\n".join([*lines, f"{len(findings):6} in all\n"]))
    return int(bool(findings))


if __name__ == "__main__":
    sys.exit(main())
