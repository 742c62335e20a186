"""What callers may send: near what is valid, and far from it."""

import json
from base64 import b64encode
from typing import Any

from hypothesis import strategies as st

from recordings import tone, wav

GOOD = b64encode(wav(tone(440, 0.5))).decode()

# Placeholders, which `as_text` replaces by what no Python value can be written as.
_RAW = {
    "@deep": "[" * 5000 + "]" * 5000,
    "@objects": '{"a":' * 900 + "1" + "}" * 900,
    "@digits": "9" * 5000,
    "@exponent": "1e999999",
    "@nan": "NaN",
    "@infinity": "-Infinity",
    "@many": "[" + "0," * 200_000 + "0]",
    "@empty objects": "[" + "{}," * 100_000 + "{}]",
    "@twice": '{"start": 1, "start": "x"}',
}
_RAW_TEXTS = {json.dumps(name): text for name, text in _RAW.items()}

characters = st.characters(codec=None)  # lone surrogates are among them
texts = st.one_of(
    st.text(characters, max_size=30),
    st.sampled_from(
        ["", " ", "\0", "\ud800", "\udfff\ud800", "a" * 65, "x" * 100_000, "\u2028", "ÿ" * 200,
         "true", "null", "en", "Čeština", "srt", "../../etc/passwd", "\r\nX: y"]
    ),
)  # fmt: skip
numbers = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from(
        [0, -1, 0.0, -0.0, 1e305, 1.7976931348623157e308, 5e-324, 2**63, 10**400, 1e8, 0.05]
    ),
)
leaves = st.one_of(st.none(), st.booleans(), numbers, texts, st.sampled_from(list(_RAW)))
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts, inner, max_size=5),
    max_leaves=12,
)
urls = st.one_of(
    st.sampled_from(
        ["http://127.0.0.1:1/a.wav", "http://[::1", "http://a:99999/", "https://", "s3://b",
         "s3://b/\ud800", "s3://b/k", "file:///etc/passwd", "http://0/", "http://10.0.0.1/a",
         "http://127.0.0.1:1/" + "x" * 40_000, "http://127.0.0.1:1/\ud800", "//a", "http:///a",
         "http://user:pass@127.0.0.1:1/", "HTTP://127.0.0.1:1", "http://127.0.0.1:1/%zz",
         "http://1e100/", "http://127.0.0.1:0x50/", "http://\u2100.example/"]
    ),
    texts,
)  # fmt: skip
base64s = st.one_of(
    st.just(GOOD),
    st.just(GOOD),
    st.just(GOOD),
    st.binary(max_size=200).map(lambda content: b64encode(content).decode()),
    st.sampled_from(["data:audio/wav;base64," + GOOD, "data:,x", "data:", GOOD[:-3], "=" * 40]),
    texts,
)


def _near(valid: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Mostly valid."""
    return st.one_of(valid, valid, valid, values)


def _object(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Some of the fields, and now and then one that is unknown."""
    known = st.fixed_dictionaries({}, optional=fields)
    misspelt = st.sampled_from(["formt", "timestamps", "Audio_url", "\ud800", "x" * 3000])
    odd = st.dictionaries(st.one_of(texts, misspelt), values, min_size=1, max_size=2)
    both = st.tuples(known, odd).map(lambda pair: {**pair[0], **pair[1]})
    return st.one_of(known, known, known, both)


clips = _object(start=_near(st.floats(0, 2)), end=_near(st.floats(0, 1e9)))
s3 = _object(key=_near(texts), bucket=_near(texts))
_options = {
    "audio_format": _near(st.sampled_from(["wav", ".mp3", "x" * 9])),
    "clip": _near(clips),
    "format": _near(st.sampled_from(["json", "verbose_json", "text", "srt", "vtt", "tsv"])),
    "timestamp": _near(st.booleans()),
    "debug": _near(st.booleans()),
    "vad": _near(st.sampled_from(["auto", "off"])),
    "attention": _near(st.sampled_from(["pieces", "full"])),
    "channels": _near(st.sampled_from(["mix", "separate"])),
    "language": _near(st.sampled_from(["en", "pt-BR", "German", "xx"])),
}
_of_job = {
    "stream": _near(st.booleans()),
    "progress": _near(st.booleans()),
    "output_url": urls,
    "output_s3": _near(s3),
}
_sources = {"audio_base64": base64s, "audio_url": urls, "audio_s3": _near(s3)}
_good = st.builds(lambda fields: {"audio_base64": GOOD, **fields}, _object(**_options))
recordings = st.one_of(_good, _good, _object(**_sources, **_options, **_of_job))
_lists = st.one_of(
    st.lists(st.one_of(recordings, recordings, values), max_size=6),
    st.builds(lambda item, count: [item] * count, st.sampled_from([{}, {"formt": 1}, 5, None]),
              st.sampled_from([10, 999, 1000, 1001, 100_000])),
)  # fmt: skip
jobs = st.one_of(
    recordings,
    st.builds(
        lambda fields, inputs: {**fields, "inputs": inputs}, _object(**_options, **_of_job), _lists
    ),
    values,
)
openai_bodies = st.one_of(
    st.builds(
        lambda fields: {"file": GOOD, **fields},
        _object(
            model=_near(st.sampled_from(["whisper-1", "tones"])),
            language=_near(st.sampled_from(["en", "xx"])),
            response_format=_near(st.sampled_from(["json", "text", "srt", "verbose_json", "vtt"])),
            temperature=_near(st.sampled_from([0, 0.0, "0", 1])),
            timestamp_granularities=_near(
                st.lists(st.sampled_from(["word", "segment"]), max_size=3)
            ),
            chunking_strategy=_near(st.just("auto")),
            stream=_near(st.booleans()),
            prompt=texts,
        ),
    ),
    _object(file=st.one_of(base64s, urls), model=texts),
    values,
)
_words = _object(
    word=_near(st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)),
    start=_near(st.floats(0, 10)),
    end=_near(st.floats(10, 20)),
    confidence=_near(st.floats(0, 1)),
    channel=_near(st.integers(1, 3)),
)
_monotonic_words = st.lists(st.text("ab., \u00e4", min_size=1, max_size=90), max_size=40).map(
    lambda texts: [
        {"word": text, "start": index / 2, "end": index / 2 + 0.4}
        for index, text in enumerate(texts)
    ]
)
_many = st.builds(
    lambda word, count: [word] * count,
    st.sampled_from(
        [{}, 5, {"word": "a", "start": 0, "end": 0}, {"word": "a" * 500, "start": 1, "end": 1e7}]
    ),
    st.sampled_from([100, 3000, 100_001]),
)
renderings = st.one_of(
    _object(
        format=_near(st.sampled_from(["text", "srt", "vtt", "tsv"])),
        words=st.one_of(
            _monotonic_words, _monotonic_words, _many, st.lists(_words, max_size=5), values
        ),
    ),
    values,
)

_names = st.one_of(st.sampled_from([*_options, *_of_job, "file", "inputs", "audio_url"]), texts)
_written = st.one_of(
    st.sampled_from(["true", "false", "json", "srt", "off", "en", '{"start": 0.1}', "{", "[]"]),
    st.sampled_from(list(_RAW.values())),
    clips.map(lambda clip: as_text(clip)),
    texts,
)
parts = st.lists(st.tuples(_names, _written), max_size=5)
boundaries = st.one_of(
    st.just("b"), st.just("b"), st.sampled_from(["", "b" * 70, "b" * 71, "b" * 3000, "\xff", "b b"])
)


def as_text(value: object) -> str:
    """The JSON of a value with placeholders."""
    text = json.dumps(value)
    for name, raw in _RAW_TEXTS.items():
        text = text.replace(name, raw)
    return text


def as_form(parts: list[tuple[str, str]], audio: bytes, boundary: str) -> bytes:
    """A multipart form of one file and these parts."""
    edge = boundary.encode("latin-1")
    written = [
        b'--%s\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
        % (edge, name.encode(errors="surrogatepass"), text.encode(errors="surrogatepass"))
        for name, text in parts
    ]
    head = b'--%s\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' % edge
    return b"".join(written) + head + audio + b"\r\n--%s--\r\n" % edge
