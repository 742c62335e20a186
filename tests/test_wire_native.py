import json
import math
from dataclasses import FrozenInstanceError
from typing import get_args

import pytest

from parakeet_worker.errors import InvalidRequest
from parakeet_worker.options import CueLimits, SpeakerCount
from parakeet_worker.request import (
    Clip,
    FileSource,
    Format,
    InlineSource,
    JobInput,
    Request,
    S3Output,
    S3Source,
    UrlOutput,
    UrlSource,
)
from parakeet_worker.wire.native import parse, parse_form

URL = "https://example.com/talk.mp3"


def only(payload: object) -> Request:
    """The one request of an unlisted job."""
    job = parse(payload)
    assert not job.listed
    (request,) = job.requests
    assert isinstance(request, Request)
    return request


def refusal(payload: object) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as raised:
        parse(payload)
    return raised.value


def listed(*items: object, **outside: object) -> tuple[object, ...]:
    job = parse({"inputs": list(items), **outside})
    assert job.listed
    return job.requests


def test_a_source_alone_requests_the_text_of_the_entire_recording():
    assert only({"audio_url": URL}) == Request(
        source=UrlSource(URL),
        audio_format=None,
        clip=Clip(0.0, None),
        format="json",
        timestamp=False,
        debug=False,
        vad="auto",
        attention="pieces",
        channels="mix",
        language=None,
        headerless=None,
    )


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ({"audio_base64": "UklGRg=="}, InlineSource("UklGRg==")),
        (
            {"audio_base64": "data:audio/wav;base64,UklGRg=="},
            InlineSource("data:audio/wav;base64,UklGRg=="),
        ),
        ({"audio_url": "http://example.com"}, UrlSource("http://example.com")),
        ({"audio_url": "HTTPS://A.example:8443/b?c#d"}, UrlSource("HTTPS://A.example:8443/b?c#d")),
        ({"audio_url": "https://u:p@[::1]:8443/a.wav"}, UrlSource("https://u:p@[::1]:8443/a.wav")),
        ({"audio_url": "https://example.com/rå.mp3"}, UrlSource("https://example.com/rå.mp3")),
        ({"audio_s3": {"key": "talks/a.mp3"}}, S3Source("talks/a.mp3")),
        ({"audio_s3": {"key": "a.mp3", "bucket": "talks"}}, S3Source("a.mp3", "talks")),
        ({"audio_s3": {"key": "a.mp3", "bucket": None}}, S3Source("a.mp3")),
    ],
)
def test_each_kind_of_source_is_read(source, expected):
    assert only(source).source == expected


@pytest.mark.parametrize(
    "key",
    ["a.mp3", "a/b/c.mp3", "a b.mp3", "50%.mp3", "%20.mp3", "what?.mp3", "#1.mp3", "ä/ö.mp3",
     "/twice.mp3", "a//b.mp3", "s3://nested/x.mp3", "tab\tnew\nline.mp3", " ", "a.mp3?versionId=1"],
)  # fmt: skip
@pytest.mark.parametrize("scheme", ["s3", "S3"])
def test_the_key_of_an_s3_address_is_used_literally(scheme, key):
    assert only({"audio_url": f"{scheme}://talks.2024/{key}"}).source == S3Source(key, "talks.2024")


@pytest.mark.parametrize(
    "url",
    ["", " ", "talk.mp3", "/etc/passwd", "//example.com/a.mp3", "ftp://example.com/a.mp3",
     "file:///etc/passwd", "FILE:///etc/passwd", "data:audio/wav;base64,UklGRg==",
     "gopher://example.com", "http://", "http:///a.mp3", "https://:443/a.mp3", "http:example.com",
     "http://[::1", "http://example.com:99999/a.mp3", "http://example.com:port/a.mp3",
     "s3://", "s3://bucket", "s3://bucket/", "s3:///key", "s3:bucket/key", "s3:/bucket/key",
     " https://example.com/a.mp3", "https://example.com/a.mp3\n", "https://exam\nple.com/",
     "https://example.com/a\x00.mp3"],
)  # fmt: skip
def test_what_is_no_http_https_or_s3_address_is_refused(url):
    error = refusal({"audio_url": url})
    assert error.facts["field"] == "audio_url"


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        ({}, "got none"),
        ({"audio_url": None, "audio_base64": None, "audio_s3": None}, "got none"),
        ({"format": "srt"}, "got none"),
        ({"audio_url": URL, "audio_base64": "UklGRg=="}, "got audio_base64 and audio_url"),
        ({"audio_url": URL, "audio_s3": {"key": "a"}}, "got audio_url and audio_s3"),
        ({"audio_url": URL, "audio_base64": ""}, "got audio_base64 and audio_url"),
    ],
)
def test_exactly_one_source_is_needed(payload, reason):
    error = refusal(payload)
    assert "exactly one of audio_base64, audio_url, audio_s3" in str(error)
    assert reason in str(error)


@pytest.mark.parametrize("format_", get_args(Format))
def test_every_format_is_accepted(format_):
    assert only({"audio_url": URL, "format": format_}).format == format_


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("timestamp", True, True),
        ("timestamp", False, False),
        ("debug", True, True),
        ("clip", {"start": 1, "end": 2}, Clip(1.0, 2.0)),
        ("clip", {"start": 1.5}, Clip(1.5, None)),
        ("clip", {"end": 2.5}, Clip(0.0, 2.5)),
        ("clip", {"start": None, "end": 2.5}, Clip(0.0, 2.5)),
        ("clip", {"start": 3, "end": None}, Clip(3.0, None)),
        ("clip", {}, Clip(0.0, None)),
        ("audio_format", "mp3", "mp3"),
        ("audio_format", ".MP3", "mp3"),
        ("audio_format", "Flac", "flac"),
        ("vad", "auto", "auto"),
        ("vad", "off", "off"),
        ("attention", "pieces", "pieces"),
        ("attention", "full", "full"),
        ("channels", "mix", "mix"),
        ("channels", "separate", "separate"),
        ("language", "pt", "pt"),
        ("language", "pt-BR", "pt"),
        ("language", "Portuguese", "pt"),
        ("language", "por", "pt"),
        ("language", "GER", "de"),
        ("language", "deu_AT", "de"),
        ("language", "Español", "es"),
        ("language", " Flemish ", "nl"),
        ("language", "auto", None),
        ("language", "AUTO", None),
        ("language", "und", None),
    ],
)
def test_every_option_is_honoured(field, value, expected):
    assert getattr(only({"audio_url": URL, field: value}), field) == expected


@pytest.mark.parametrize(
    "field",
    ["audio_format", "clip", "format", "timestamp", "debug", "vad", "attention", "channels",
     "language"],
)  # fmt: skip
def test_null_counts_as_absent(field):
    assert only({"audio_url": URL, field: None}) == only({"audio_url": URL})


def test_null_inputs_count_as_absent():
    assert only({"audio_url": URL, "inputs": None}) == only({"audio_url": URL})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("timestamp", "false"),
        ("timestamp", "true"),
        ("timestamp", 1),
        ("timestamp", 0),
        ("timestamp", []),
        ("debug", "yes"),
        ("debug", 1),
        ("format", "jsn"),
        ("format", "JSON"),
        ("format", ""),
        ("format", 1),
        ("format", ["json"]),
        ("vad", "none"),
        ("vad", False),
        ("vad", ""),
        ("attention", True),
        ("channels", 2),
        ("language", 7),
        ("audio_format", 3),
        ("audio_format", ""),
        ("audio_format", "."),
        ("audio_format", "mp3\n"),
        ("audio_format", "../../x"),
        ("audio_format", "audio/mpeg"),
        ("audio_format", "a" * 9),
        ("clip", 5),
        ("clip", "0-5"),
        ("clip", [0, 5]),
        ("audio_url", 5),
        ("audio_url", ["https://example.com"]),
        ("audio_base64", {"data": ""}),
        ("audio_base64", 0),
        ("audio_s3", "talks/a.mp3"),
        ("audio_s3", ["a.mp3"]),
    ],
)
def test_a_field_of_the_wrong_type_or_value_is_named(field, value):
    source = {} if field.startswith("audio_") and field != "audio_format" else {"audio_url": URL}
    error = refusal({**source, field: value})
    assert error.facts["field"] == field
    assert str(error).startswith(f"invalid_request: {field}: must ")


@pytest.mark.parametrize(
    ("clip", "field"),
    [
        ({"start": -0.1}, "clip.start"),
        ({"start": True}, "clip.start"),
        ({"start": "1"}, "clip.start"),
        ({"start": math.nan}, "clip.start"),
        ({"start": math.inf}, "clip.start"),
        ({"start": 10**400}, "clip.start"),
        ({"end": 0}, "clip.end"),
        ({"end": -1}, "clip.end"),
        ({"end": math.nan}, "clip.end"),
        ({"end": math.inf}, "clip.end"),
        ({"end": "00:10"}, "clip.end"),
        ({"start": 2, "end": 2}, "clip.end"),
        ({"start": 3, "end": 2}, "clip.end"),
        ({"start": json.loads("1e400")}, "clip.start"),
        ({"start": json.loads("NaN")}, "clip.start"),
    ],
)
def test_an_impossible_clip_is_refused_by_the_name_of_its_edge(clip, field):
    assert refusal({"audio_url": URL, "clip": clip}).facts["field"] == field


@pytest.mark.parametrize(
    ("s3", "field"),
    [
        ({}, "audio_s3.key"),
        ({"bucket": "talks"}, "audio_s3.key"),
        ({"key": ""}, "audio_s3.key"),
        ({"key": None}, "audio_s3.key"),
        ({"key": 7}, "audio_s3.key"),
        ({"key": "a", "bucket": ""}, "audio_s3.bucket"),
        ({"key": "a", "bucket": ["talks"]}, "audio_s3.bucket"),
    ],
)
def test_an_impossible_s3_object_is_refused_by_the_name_of_its_field(s3, field):
    assert refusal({"audio_s3": s3}).facts["field"] == field


@pytest.mark.parametrize(
    ("payload", "field", "nearest"),
    [
        ({"audio_urll": URL}, "audio_urll", "audio_url"),
        ({"audio": URL, "audio_url": URL}, "audio", "audio_s3"),
        ({"audio_url": URL, "timestamps": True}, "timestamps", "timestamp"),
        ({"audio_url": URL, "Format": "srt"}, "Format", "format"),
        ({"audio_url": URL, "input": []}, "input", "inputs"),
        ({"audio_url": URL, "temperature": 0}, "temperature", None),
        ({"audio_url": URL, "temperature": None}, "temperature", None),
        ({"audio_url": URL, "clip": {"strat": 1}}, "clip.strat", "start"),
        ({"audio_url": URL, "clip": {"begin": 1}}, "clip.begin", None),
        ({"audio_s3": {"key": "a", "buket": "b"}}, "audio_s3.buket", "bucket"),
        ({"audio_s3": {"Key": "a"}}, "audio_s3.Key", "key"),
    ],
)
def test_an_unknown_field_is_refused_with_the_nearest_right_name(payload, field, nearest):
    error = refusal(payload)
    assert error.facts == {"field": field, **({"nearest": nearest} if nearest else {})}
    assert (f"did you mean '{nearest}'?" in str(error)) == (nearest is not None)


def test_a_misspelled_format_is_answered_with_the_nearest_one():
    assert refusal({"audio_url": URL, "format": "vrt"}).facts["nearest"] in ("srt", "vtt")
    assert refusal({"audio_url": URL, "format": "verbose"}).facts["nearest"] == "verbose_json"


@pytest.mark.parametrize("payload", [None, [], "audio", 5, True, [{"audio_url": URL}]])
def test_a_payload_that_is_no_object_is_refused(payload):
    error = refusal(payload)
    assert error.facts["field"] == "input"


def test_a_text_has_no_place_for_times():
    error = refusal({"audio_url": URL, "format": "text", "timestamp": True})
    assert error.facts["field"] == "timestamp"
    assert only({"audio_url": URL, "format": "text", "timestamp": False}).format == "text"


@pytest.mark.parametrize("format_", [name for name in get_args(Format) if name != "text"])
def test_times_go_with_every_format_that_can_hold_them(format_):
    assert only({"audio_url": URL, "format": format_, "timestamp": True}).timestamp


def test_no_error_shows_internal_names():
    payloads = [{"audio_url": URL, "clip": 5}, {"audio_s3": 5}, {"audio_s3": {}}, {"audio_url": 5}]
    for payload in payloads:
        assert "Wire" not in str(refusal(payload))
        assert "Input should" not in str(refusal(payload))


def test_a_list_is_read_in_order_each_with_its_own_source():
    job = parse({"inputs": [{"audio_url": f"{URL}?{number}"} for number in range(5)]})
    assert job == JobInput(
        tuple(Request(source=UrlSource(f"{URL}?{number}")) for number in range(5)), listed=True
    )


LIMITS = {
    "max_line_characters": 30, "max_lines": 1, "max_characters_per_second": 20.5,
    "max_cue_seconds": 3,
}  # fmt: skip


def test_limits_of_subtitles_are_fields():
    request = only({"audio_url": URL, "format": "vtt", **LIMITS})
    assert request.cue_limits == CueLimits(30, 1, 20.5, 3.0)
    assert only({"audio_url": URL, "format": "vtt"}).cue_limits == CueLimits()


def test_limits_of_subtitles_are_fields_of_a_form(tmp_path):
    fields = [("format", "srt"), *((name, str(value)) for name, value in LIMITS.items())]
    (request,) = parse_form(fields, FileSource(tmp_path / "a")).requests
    assert isinstance(request, Request)
    assert request.cue_limits == CueLimits(30, 1, 20.5, 3.0)
    with pytest.raises(InvalidRequest) as caught:
        parse_form([("format", "srt"), ("max_lines", "two")], FileSource(tmp_path / "a"))
    assert caught.value.facts["field"] == "max_lines"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"max_lines": 1}, "max_lines"),
        ({"format": "verbose_json", "max_cue_seconds": 3}, "max_cue_seconds"),
        ({"format": "srt", "max_line_characters": 9}, "max_line_characters"),
        ({"format": "srt", "max_line_characters": 101}, "max_line_characters"),
        ({"format": "srt", "max_lines": 0}, "max_lines"),
        ({"format": "srt", "max_lines": 5}, "max_lines"),
        ({"format": "srt", "max_characters_per_second": 4}, "max_characters_per_second"),
        ({"format": "srt", "max_cue_seconds": 31}, "max_cue_seconds"),
        ({"format": "srt", "max_cue_seconds": "3"}, "max_cue_seconds"),
    ],
)
def test_limits_of_subtitles_are_bounded_and_require_subtitles(fields, field):
    assert refusal({"audio_url": URL, **fields}).facts["field"] == field


def test_a_list_of_one_is_still_a_list():
    assert parse({"inputs": [{"audio_url": URL}]}).listed


def test_options_outside_a_list_are_defaults_that_each_object_may_override():
    plain, own, null = listed(
        {"audio_url": URL},
        {"audio_url": URL, "format": "vtt", "clip": {"end": 1}, "debug": False},
        {"audio_url": URL, "format": None, "clip": None},
        format="srt",
        clip={"start": 2},
        debug=True,
        audio_format="ogg",
    )
    assert plain == Request(UrlSource(URL), "ogg", Clip(2.0), "srt", timestamp=False, debug=True)
    assert own == Request(UrlSource(URL), "ogg", Clip(0.0, 1.0), "vtt")
    assert null == plain


def test_the_error_of_one_object_of_a_list_has_its_position():
    requests = listed(
        {"audio_url": URL},
        {"audio_url": URL, "formt": "srt"},
        {"audio_url": URL, "formt": None},
        "https://example.com",
        None,
        {},
        {"audio_url": URL, "clip": {"strat": 0}},
        {"audio_s3": {"key": "a", "buckt": "b"}},
        {"audio_url": URL, "timestamp": True, "format": "text"},
        {"audio_url": URL, "clip": {"start": 2, "end": 1}},
        {"audio_url": URL},
    )
    fields = [
        request.facts["field"] if isinstance(request, InvalidRequest) else None
        for request in requests
    ]
    assert fields == [
        None,
        "inputs[1].formt",
        "inputs[2].formt",
        "inputs[3]",
        "inputs[4]",
        "inputs[5].audio_url",
        "inputs[6].clip.strat",
        "inputs[7].audio_s3.buckt",
        "inputs[8].timestamp",
        "inputs[9].clip.end",
        None,
    ]
    assert requests[1].facts["nearest"] == "format"
    assert requests[6].facts["nearest"] == "start"
    assert requests[7].facts["nearest"] == "bucket"


def test_a_list_inside_a_list_is_refused():
    (inner,) = listed({"inputs": [{"audio_url": URL}]})
    assert isinstance(inner, InvalidRequest)
    assert inner.facts["field"] == "inputs[0].inputs"


@pytest.mark.parametrize("inputs", [[], {}, {"audio_url": URL}, "a", 5, False, ()])
def test_inputs_must_be_a_list_of_at_least_one(inputs):
    assert refusal({"inputs": inputs}).facts["field"] == "inputs"


@pytest.mark.parametrize(
    "outside", [{"audio_url": URL}, {"audio_base64": ""}, {"audio_s3": {"key": "a"}}]
)
def test_a_source_cannot_be_combined_with_a_list(outside):
    (field,) = outside
    assert refusal({"inputs": [{"audio_url": URL}], **outside}).facts["field"] == field


@pytest.mark.parametrize(
    ("outside", "field"),
    [
        ({"formt": "srt"}, "formt"),
        ({"format": "jsn"}, "format"),
        ({"timestamp": "false"}, "timestamp"),
        ({"clip": {"strat": 1}}, "clip.strat"),
    ],
)
def test_a_wrong_option_outside_a_list_fails_the_entire_job(outside, field):
    assert refusal({"inputs": [{"audio_url": URL}], **outside}).facts["field"] == field


def test_the_callers_payload_is_left_as_it_was():
    payload = {"inputs": [{"audio_url": URL, "clip": {"end": 1}}], "format": "srt", "debug": None}
    before = json.dumps(payload)
    parse(payload)
    assert json.dumps(payload) == before


def test_a_request_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        only({"audio_url": URL}).format = "srt"


# what concerns the whole job


def test_a_job_is_not_streamed_reported_or_written_by_default():
    job = parse({"audio_url": URL})
    assert (job.stream, job.progress, job.output) == (False, False, None)


@pytest.mark.parametrize("field", ["stream", "progress"])
def test_streams_and_progress_are_booleans(field):
    assert getattr(parse({"audio_url": URL, field: True}), field) is True
    assert getattr(parse({"audio_url": URL, field: False}), field) is False
    assert getattr(parse({"audio_url": URL, field: None}), field) is False
    for wrong in ("true", 1, [True]):
        assert refusal({"audio_url": URL, field: wrong}).facts["field"] == field


@pytest.mark.parametrize(
    ("fields", "output"),
    [
        ({"output_url": "https://example.com/a.json?sig=1"},
         UrlOutput("https://example.com/a.json?sig=1")),
        ({"output_url": "s3://talks/a.json.gz"}, S3Output("a.json.gz", "talks")),
        ({"output_s3": {"key": "a.json"}}, S3Output("a.json")),
        ({"output_s3": {"key": "a.json", "bucket": "talks"}}, S3Output("a.json", "talks")),
        ({"output_s3": None, "output_url": None}, None),
    ],
)  # fmt: skip
def test_each_kind_of_output_is_parsed(fields, output):
    assert parse({"audio_url": URL, **fields}).output == output
    assert parse({"inputs": [{"audio_url": URL}], **fields}).output == output


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"output_url": "ftp://example.com/a"}, "output_url"),
        ({"output_url": "talk.json"}, "output_url"),
        ({"output_url": "s3://talks"}, "output_url"),
        ({"output_url": " https://example.com/"}, "output_url"),
        ({"output_url": 1}, "output_url"),
        ({"output_s3": "talks/a.json"}, "output_s3"),
        ({"output_s3": {}}, "output_s3.key"),
        ({"output_s3": {"key": ""}}, "output_s3.key"),
        ({"output_s3": {"key": "a", "buckt": "b"}}, "output_s3.buckt"),
        ({"output_s3": {"key": "a"}, "output_url": "https://example.com/a"}, "output_url"),
    ],
)
def test_an_invalid_output_is_rejected(fields, field):
    assert refusal({"audio_url": URL, **fields}).facts["field"] == field


def test_a_list_cannot_be_streamed_but_can_report_progress():
    items = [{"audio_url": URL}]
    assert refusal({"inputs": items, "stream": True}).facts["field"] == "stream"
    assert parse({"inputs": items, "progress": True}).progress


@pytest.mark.parametrize("field", ["stream", "progress", "output_url", "output_s3"])
def test_what_concerns_the_whole_job_has_no_place_inside_a_list(field):
    (error,) = listed({"audio_url": URL, field: True})
    assert isinstance(error, InvalidRequest)
    assert error.facts["field"] == f"inputs[0].{field}"


# bounds

LONG = "x" * 10_000_000


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        ({"inputs": [{}] * 200_000}, "inputs"),
        ({"audio_url": "https://example.com/" + LONG}, "audio_url"),
        ({"audio_url": URL, "output_url": "https://example.com/" + LONG}, "output_url"),
        ({"audio_s3": {"key": LONG}}, "audio_s3.key"),
        ({"audio_s3": {"key": "a", "bucket": LONG}}, "audio_s3.bucket"),
        ({"audio_url": URL, "language": LONG}, "language"),
        ({"audio_url": URL, "format": LONG}, "format"),
        ({"audio_url": URL, "audio_format": LONG}, "audio_format"),
        ({"audio_url": URL, "clip": {str(index): 1 for index in range(100_000)}}, "clip"),
        ({"audio_url": URL, "clip": {"end": 10**400}}, "clip.end"),
        ({"audio_url": URL, "clip": {"start": 1e305}}, "clip.start"),
        ({str(index): 1 for index in range(100_000)}, "input"),
        ({"inputs": [{}], **{str(index): 1 for index in range(100_000)}}, "input"),
        ({LONG: 1}, "x" * 99 + "…"),
        ({"audio_url": URL, "clip": {LONG: 1}}, "clip." + "x" * 94 + "…"),
    ],
)
def test_every_length_count_and_number_has_a_bound(payload, field):
    error = refusal(payload)
    assert error.facts["field"] == field
    assert len(str(error.document())) < 1000


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        ({"audio_url": "\ud800"}, "audio_url"),
        ({"audio_s3": {"key": "\ud800"}}, "audio_s3.key"),
        ({"audio_url": "s3://talks/\ud800"}, "audio_url"),
        ({"audio_url": URL, "language": "\ud800"}, "language"),
        ({"audio_url": URL, "format": "\ud800"}, "format"),
        ({"audio_url": URL, "\ud800": 1}, "\\ud800"),
        ({"audio_url": URL, "clip": {"\ud800": 1}}, "clip"),
    ],
)
def test_a_lone_surrogate_is_refused_in_words_that_can_be_sent(payload, field):
    error = refusal(payload)
    assert error.facts["field"] == field
    json.dumps(error.document(), ensure_ascii=False).encode()


@pytest.mark.parametrize("end", [1.7976931348623157e308, 1e305, 1e8])
def test_a_clip_that_ends_later_than_any_recording_has_no_end(end):
    assert only({"audio_url": URL, "clip": {"start": 5, "end": end}}).clip == Clip(5.0, None)
    assert Clip(5.0, end) == Clip(5.0, None)


def test_errors_of_a_list_hold_nothing_but_themselves():
    first, second = listed({"audio_url": URL, "clip": {"start": "x"}}, {"formt": 1})
    for error in (first, second):
        assert isinstance(error, InvalidRequest)
        assert error.__traceback__ is error.__cause__ is error.__context__ is None


@pytest.mark.parametrize("text", ["[" * 5000, "9" * 5000, '{"a":' * 900 + "1" + "}" * 900])
def test_a_form_field_that_cannot_be_parsed_is_refused_by_name(text, tmp_path):
    with pytest.raises(InvalidRequest) as raised:
        parse_form([("clip", text)], tmp_path)
    assert raised.value.facts["field"] == "clip"


@pytest.mark.parametrize(
    ("speakers", "expected"),
    [
        (True, SpeakerCount(1, 20)),
        (False, None),
        (None, None),
        ({}, SpeakerCount(1, 20)),
        ({"exact": 3}, SpeakerCount(3, 3)),
        ({"min": 2}, SpeakerCount(2, 20)),
        ({"min": 2, "max": 4}, SpeakerCount(2, 4)),
    ],
)
def test_speakers_are_a_flag_or_limits(speakers, expected):
    assert only({"audio_url": URL, "speakers": speakers}).speakers == expected


@pytest.mark.parametrize(
    ("speakers", "field"),
    [
        ({"min": 3, "max": 2}, "speakers.min"),
        ({"exact": 2, "max": 2}, "speakers.exact"),
        ({"exact": 0}, "speakers.exact"),
        ({"max": 21}, "speakers.max"),
        ({"min": 1.5}, "speakers.min"),
        ({"number": 2}, "speakers.number"),
        (2, "speakers"),
        ("true", "speakers"),
    ],
)
def test_impossible_speakers_are_rejected_by_field(speakers, field):
    assert refusal({"audio_url": URL, "speakers": speakers}).facts["field"] == field


def test_rttm_implies_speakers():
    assert only({"audio_url": URL, "format": "rttm"}).speakers == SpeakerCount()
    payload = {"audio_url": URL, "format": "rttm", "speakers": False}
    assert refusal(payload).facts["field"] == "speakers"


def test_a_form_has_speakers_as_a_word_or_as_json(tmp_path):
    for text, expected in (("true", SpeakerCount()), ('{"exact": 2}', SpeakerCount(2, 2))):
        (request,) = parse_form([("speakers", text)], tmp_path / "file").requests
        assert isinstance(request, Request)
        assert request.speakers == expected
