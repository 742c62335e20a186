import inspect
import json
import pickle
import re
from pathlib import Path

import pytest

from parakeet_worker import errors
from parakeet_worker.errors import (
    EngineError,
    ParakeetError,
    RequestError,
    SetupError,
    TransientError,
)

FAMILIES = (RequestError, TransientError, EngineError, SetupError)

EXAMPLES: list[ParakeetError] = [
    errors.InvalidRequest("formt", "no such field", "format"),
    errors.SourceForbidden("10.0.0.1", "it is not a public address"),
    errors.SourceRefused("https://example.com/a.mp3", 401),
    errors.SourceNotFound("https://example.com/a.mp3"),
    errors.S3NotConfigured(["S3_ACCESS_KEY", "S3_SECRET_KEY"]),
    errors.EndpointRefused("https://example.com/v2/abc/run", 400, "no input"),
    errors.PayloadTooLarge(30_000_000, 7_000_000, ["FLAC", "Opus"]),
    errors.AudioTooLarge(1000, 2000),
    errors.OutputRefused("https://example.com/answer.json", "the server answered 403"),
    errors.ResultTooLarge(20_000_000, 19_000_000),
    errors.JobTimeout(600.0),
    errors.OutputUnreachable("https://example.com/answer.json", "the server answered 503"),
    errors.AudioTooLong(3600.0),
    errors.AudioTooShort(0.05, 0.1),
    errors.AudioEmpty("the file is empty"),
    errors.AudioMissing(),
    errors.AudioTruncated(3.25, 10.0, "6.75 s are missing"),
    errors.AudioDamaged("0.50 s are missing", 1.25, 1.75),
    errors.AudioUndecodable("Invalid data found when processing input"),
    errors.ClipOutside(12.0, 10.5),
    errors.SourceUnreachable("https://example.com/a.mp3", "connection refused"),
    errors.SourceTimeout("https://example.com/a.mp3", 300.0),
    errors.EndpointUnreachable("https://example.com/v2/abc/run", "it answered 503"),
    errors.ResultNotWritten(Path("out/talk.txt"), "No space left on device", disk_full=True),
    errors.JobCancelled("abc-e1"),
    errors.JobExpired("abc-e1", "it took longer than the endpoint lets it"),
    errors.DecodeTimeout(1800.0),
    errors.DecoderKilled(61.5),
    errors.ScratchFull(0),
    errors.ScratchUnusable("Read-only file system"),
    errors.Overloaded(21_000.0, 21_600.0),
    errors.JobFailed("abc-e1", "KeyError: 'input'"),
    errors.InvalidApiKey(),
    errors.HostForbidden("evil.example"),
    errors.OriginForbidden("https://evil.example"),
    errors.SpeakerReferenceUnusable("known_speakers.0", "Ada", "0.0 s of speech, minimum 1 s"),
    errors.ModelNotFound("whisper", "parakeet"),
    errors.UnknownRoute("/v1/chat"),
    errors.MethodNotAllowed("GET", "/transcribe"),
    errors.UploadTimeout(600.0),
    errors.Busy(64),
    errors.Warming(),
    errors.OutOfMemory(29.96),
    errors.NotFinite(29.96),
    errors.ContractBroken(8, 7),
    errors.EngineLost("RuntimeError: CUDA error: device-side assert triggered"),
    errors.InvalidSetting("PARAKEET_MODLE", "no such setting", "PARAKEET_MODEL"),
    errors.ExtraMissing("torch", "engine"),
    errors.EndpointDenied("https://example.com/v2/abc/run", 401),
    errors.DeviceMissing("cuda", "this torch build has no CUDA support"),
    errors.WeightsMissing("demo", ["/models/demo.nemo"]),
    errors.WeightsCorrupt("/models/demo.nemo", "it is no tar archive"),
    errors.WeightsUnsupported("encoder", "subsampling", "stacking"),
    errors.FfmpegMissing(),
    errors.PythonUnsupported("3.10.1"),
    errors.VolumeFull("/volume", 1.5, 8.0),
    errors.VolumeReadonly("/volume", "Read-only file system"),
    errors.VolumeUnusable("/volume", "Not a directory"),
    errors.UvMissing("/opt/uv"),
    errors.IndexUnreachable("https://example.com/simple", "connection refused"),
    errors.PackageUntrusted("hash mismatch for torch==2.8.0"),
    errors.InstallFailed("no version of torch==2.8.0"),
    errors.InstallTimeout(3600.0, "installing"),
]


def descendants(family: type[ParakeetError]) -> list[type[ParakeetError]]:
    children = family.__subclasses__()
    return [*children, *(grandchild for child in children for grandchild in descendants(child))]


LEAVES = [kind for kind in descendants(ParakeetError) if not kind.__subclasses__()]

CODES = {
    "audio_damaged",
    "audio_empty",
    "audio_missing",
    "audio_too_large",
    "audio_too_long",
    "audio_too_short",
    "audio_truncated",
    "audio_undecodable",
    "busy",
    "clip_outside",
    "contract_broken",
    "decode_timeout",
    "decoder_killed",
    "device_missing",
    "endpoint_denied",
    "endpoint_refused",
    "endpoint_unreachable",
    "engine_lost",
    "extra_missing",
    "ffmpeg_missing",
    "host_forbidden",
    "index_unreachable",
    "install_failed",
    "install_timeout",
    "invalid_api_key",
    "invalid_request",
    "invalid_setting",
    "job_cancelled",
    "job_expired",
    "job_failed",
    "job_timeout",
    "method_not_allowed",
    "model_not_found",
    "not_finite",
    "origin_forbidden",
    "out_of_memory",
    "output_refused",
    "output_unreachable",
    "overloaded",
    "package_untrusted",
    "payload_too_large",
    "python_unsupported",
    "result_not_written",
    "result_too_large",
    "s3_not_configured",
    "scratch_full",
    "scratch_unusable",
    "source_forbidden",
    "speaker_reference_unusable",
    "source_not_found",
    "source_refused",
    "source_timeout",
    "source_unreachable",
    "unknown_route",
    "upload_timeout",
    "uv_missing",
    "volume_full",
    "volume_readonly",
    "volume_unusable",
    "warming",
    "weights_corrupt",
    "weights_missing",
    "weights_unsupported",
}

each_example = pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)


def test_every_leaf_of_the_tree_has_an_example_here():
    assert len(LEAVES) > len(FAMILIES)
    assert sorted(type(error).__name__ for error in EXAMPLES) == sorted(
        kind.__name__ for kind in LEAVES
    )


def test_the_tree_is_two_levels_deep_and_its_families_are_these_four():
    assert set(ParakeetError.__subclasses__()) == set(FAMILIES)
    assert {child for family in FAMILIES for child in family.__subclasses__()} == set(LEAVES)


def test_every_error_belongs_to_exactly_one_family():
    for kind in LEAVES:
        assert sum(issubclass(kind, family) for family in FAMILIES) == 1, kind


def test_no_two_errors_share_a_code():
    codes = [kind.code for kind in LEAVES]
    assert len(set(codes)) == len(codes)


def test_only_leaves_have_a_code():
    for family in (ParakeetError, *FAMILIES):
        assert not hasattr(family, "code")


def test_codes_are_public_and_do_not_change_with_a_rename():
    assert {error.code for error in EXAMPLES} == CODES


@each_example
def test_the_document_is_json_whose_error_is_a_string_with_the_code_in_front(error):
    document = json.loads(json.dumps(error.document(), allow_nan=False))
    assert document["error"].startswith(f"{error.code}: ")
    assert len(document["error"]) > len(f"{error.code}: ")
    assert document["code"] == error.code
    assert document["error"] == str(error).removesuffix(f": {getattr(error, 'reason', '')}")


@each_example
def test_no_fact_hides_the_error_or_its_code_and_none_is_null(error):
    assert not {"error", "code", "refresh_worker"} & set(error.facts)
    assert None not in error.facts.values()


@each_example
def test_the_sentence_is_one_line(error):
    assert len(str(error).splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "facts"),
    [
        (EXAMPLES[0], {"field": "formt", "nearest": "format"}),
        (errors.InvalidRequest("clip", "must be an object"), {"field": "clip"}),
        (errors.AudioTooLarge(1000), {"limit": 1000}),
        (errors.AudioTooLarge(1000, 0), {"limit": 1000, "bytes": 0}),
        (errors.AudioTooLong(3600.0), {"limit": 3600.0}),
        (errors.AudioTruncated(3.25, None, "cut off"), {"seconds": 3.25}),
        (errors.ContractBroken(8, 7), {"chunks": 8, "results": 7}),
        (errors.S3NotConfigured(["S3_BUCKET"]), {"missing": ["S3_BUCKET"]}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, ParakeetError) else "",
)
def test_the_document_contains_the_facts(error, facts):
    assert error.facts == facts
    assert error.document() == {"error": str(error), "code": error.code, **facts}


@pytest.mark.parametrize(
    ("family", "statuses"),
    [
        (RequestError, range(400, 500)),
        (TransientError, [503]),
        (EngineError, [500]),
        (SetupError, [500]),
    ],
)
def test_the_http_status_matches_the_family(family, statuses):
    assert family.__subclasses__()
    for kind in family.__subclasses__():
        assert kind.http_status in statuses, kind


def test_every_error_has_a_one_sentence_meaning():
    for kind in LEAVES:
        meaning = (inspect.getdoc(kind) or "").partition("\n")[0]
        assert meaning.endswith("."), kind


def test_the_module_docstring_lists_the_families_with_their_meanings():
    for family in FAMILIES:
        meaning = (inspect.getdoc(family) or "").rstrip(".").partition(";")[0]
        line = rf"── {family.__name__} +{meaning}$"
        assert re.search(line, errors.__doc__ or "", re.MULTILINE | re.IGNORECASE)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("formt", "format"), ("audio_ur", "audio_url"), ("xyz", None), ("", None)],
)
def test_nearest_finds_the_name_that_was_meant_or_none(name, expected):
    assert errors.nearest(name, ["format", "audio_url", "audio_s3"]) == expected


@each_example
def test_an_error_is_read_back_from_its_document_as_what_it_was(error):
    document = json.loads(json.dumps(error.document()))
    again = errors.read({**document, "refresh_worker": True})
    assert type(again) is type(error)
    assert again.document() == document
    assert str(again) == document["error"]


def test_the_code_in_front_of_the_sentence_is_enough_to_read_an_error():
    error = errors.read({"error": "audio_empty: the file is empty"})
    assert isinstance(error, errors.AudioEmpty)
    assert str(error) == "audio_empty: the file is empty"


@pytest.mark.parametrize(
    "document", [{}, {"error": "no code"}, {"error": "odd_code: x"}, {"error": "x", "code": "odd"}]
)
def test_what_is_none_of_our_errors_is_not_read_as_one(document):
    assert errors.read(document) is None


# Sentences of our own, which some are made from, are not cut.
ERRORS_OF = {
    "InvalidRequest": ["reason"],
    "ModelNotFound": ["served"],
    "AudioEmpty": ["reason"],
    "AudioUndecodable": ["reason"],
    "EngineLost": ["reason"],
}


def foreign_strings_of(kind: type[ParakeetError]) -> list[str]:
    parameters = inspect.signature(kind.__init__).parameters.values()
    strings = [each.name for each in parameters if each.annotation is str]
    return [name for name in strings if name not in ERRORS_OF.get(kind.__name__, [])]


ECHOING = [kind for kind in LEAVES if not issubclass(kind, SetupError) and foreign_strings_of(kind)]


@pytest.mark.parametrize("kind", ECHOING)
def test_echoes_are_cut_to_100_characters_and_encodable(kind):
    example = next(error for error in EXAMPLES if type(error) is kind)
    arguments = {"seconds": 1.0, "declared_seconds": 1.0, "limit_seconds": 1.0, "status": 400}
    arguments["path"] = Path("out")
    required = inspect.signature(kind.__init__).parameters
    own = ERRORS_OF.get(kind.__name__, [])
    sent = dict.fromkeys(foreign_strings_of(kind), "�" + "x" * 10000)
    facts = {name: arguments[name] for name in required if name in arguments}
    error = kind(**{**facts, **dict.fromkeys(own, "own"), **sent})
    text = json.dumps(error.document(), ensure_ascii=False)
    text.encode()
    assert len(text) < 100 * 2 * len(sent) + 2 * len(str(example.document())) + 200
    assert "x" * 101 not in text


def test_an_echo_is_cut_and_without_lone_surrogates():
    assert errors.echo("talk.mp3") == "talk.mp3"
    assert errors.echo("x" * 100) == "x" * 100
    assert errors.echo("x" * 101) == "x" * 99 + "…"
    assert errors.echo("a\ud800b") == "a\\ud800b"
    assert len(errors.echo("\ud800" * 100)) == 100


def test_a_long_name_is_not_compared():
    assert errors.nearest("formt", ["format"]) == "format"
    assert errors.nearest("formt" + "t" * 100, ["format" + "t" * 100]) is None


def test_library_text_about_a_lost_engine_stays_in_the_log():
    error = errors.EngineLost("RuntimeError: CUDA error: device-side assert triggered")
    assert "device-side assert" in str(error)
    assert "CUDA" not in str(error.document())
    assert "CUDA" not in error.sentence
    reported = errors.read(error.document())
    assert isinstance(reported, errors.EngineLost)
    assert str(reported) == error.document()["error"]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_can_be_sent_to_another_process(error: ParakeetError) -> None:
    restored = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(restored) is type(error)
    assert str(restored) == str(error)
    assert restored.args == error.args
    assert restored.document() == error.document()
