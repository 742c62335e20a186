"""Settings: each variable and its field, errors, and secrets."""

import re
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from pydantic import ValidationError

from parakeet_worker.errors import InvalidSetting
from parakeet_worker.settings import Settings, variable

# Per field: variable, its text, and the parsed value.
READ: dict[str, tuple[str, str, Any]] = {
    "model": ("PARAKEET_MODEL", "demo", "demo"),
    "model_name": ("PARAKEET_MODEL_NAME", "parakeet", "parakeet"),
    "model_revision": ("PARAKEET_MODEL_REVISION", "541d1f9", "541d1f9"),
    "engine": ("PARAKEET_ENGINE", "tones", "tones"),
    "device": ("PARAKEET_DEVICE", "cuda", "cuda"),
    "vad_device": ("PARAKEET_VAD_DEVICE", "cpu", "cpu"),
    "precision": ("PARAKEET_PRECISION", "bf16", "bf16"),
    "kernels": ("PARAKEET_KERNELS", "off", "off"),
    "kernel_cache": ("PARAKEET_KERNEL_CACHE", "/opt/kernels", Path("/opt/kernels")),
    "reproducible": ("PARAKEET_REPRODUCIBLE", "true", True),
    "converted": ("PARAKEET_CONVERTED", "/models", Path("/models")),
    "concurrency": ("PARAKEET_CONCURRENCY", "3", 3),
    "max_audio_bytes": ("PARAKEET_MAX_AUDIO_BYTES", "1048576", 1 << 20),
    "max_audio_seconds": ("PARAKEET_MAX_AUDIO_SECONDS", "90.5", 90.5),
    "download_timeout_seconds": ("PARAKEET_DOWNLOAD_TIMEOUT_SECONDS", "7", 7.0),
    "stall_timeout_seconds": ("PARAKEET_STALL_TIMEOUT_SECONDS", "1.5", 1.5),
    "decode_timeout_seconds": ("PARAKEET_DECODE_TIMEOUT_SECONDS", "60", 60.0),
    "allow_private_addresses": ("PARAKEET_ALLOW_PRIVATE_ADDRESSES", "true", True),
    "decoders": ("PARAKEET_DECODERS", "4", 4),
    "resampling_precision": ("PARAKEET_RESAMPLING_PRECISION", "single", "single"),
    "ingest_processes": ("PARAKEET_INGEST_PROCESSES", "3", 3),
    "decoder_memory_bytes": ("PARAKEET_DECODER_MEMORY_BYTES", "200000000", 200_000_000),
    "job_timeout_seconds": ("PARAKEET_JOB_TIMEOUT_SECONDS", "600", 600.0),
    "engine_timeout_seconds": ("PARAKEET_ENGINE_TIMEOUT_SECONDS", "30", 30.0),
    "delivery_timeout_seconds": ("PARAKEET_DELIVERY_TIMEOUT_SECONDS", "20", 20.0),
    "max_result_bytes": ("PARAKEET_MAX_RESULT_BYTES", "1000", 1000),
    "strict": ("PARAKEET_STRICT", "true", True),
    "log_text": ("PARAKEET_LOG_TEXT", "true", True),
    "segment_seconds": ("PARAKEET_SEGMENT_SECONDS", "15", 15.0),
    "batch_seconds": ("PARAKEET_BATCH_SECONDS", "480", 480.0),
    "audio_memory_bytes": ("PARAKEET_AUDIO_MEMORY_BYTES", "1000000", 1_000_000),
    "queue_seconds": ("PARAKEET_QUEUE_SECONDS", "100", 100.0),
    "model_timeout_seconds": ("PARAKEET_MODEL_TIMEOUT_SECONDS", "60", 60.0),
    "threads": ("PARAKEET_THREADS", "3", 3),
    "scratch_least_bytes": ("PARAKEET_SCRATCH_LEAST_BYTES", "1000", 1000),
    "scratch": ("PARAKEET_SCRATCH", "/scratch", Path("/scratch")),
    "ffmpeg": ("PARAKEET_FFMPEG", "/opt/ffmpeg", Path("/opt/ffmpeg")),
    "runpod_api_key": ("RUNPOD_API_KEY", "rpa_1", "rpa_1"),
    "runpod_endpoint_base_url": (
        "RUNPOD_ENDPOINT_BASE_URL",
        "http://127.0.0.1/v2",
        "http://127.0.0.1/v2",
    ),
    "api_key": ("PARAKEET_API_KEY", "sesame", "sesame"),
    "s3_access_key": ("S3_ACCESS_KEY", "AKIA", "AKIA"),
    "s3_secret_key": ("S3_SECRET_KEY", "hush", "hush"),
    "s3_endpoint": ("S3_ENDPOINT", "https://s3.example.com", "https://s3.example.com"),
    "s3_bucket": ("S3_BUCKET", "talks", "talks"),
    "s3_region": ("S3_REGION", "eu-west-1", "eu-west-1"),
    "s3_session_token": ("S3_SESSION_TOKEN", "FwoG", "FwoG"),
    "s3_addressing_style": ("S3_ADDRESSING_STYLE", "virtual", "virtual"),
    "s3_anonymous": ("S3_ANONYMOUS", "true", True),
    "s3_output_prefix": ("S3_OUTPUT_PREFIX", "out/", "out/"),
    "user_agent": ("PARAKEET_USER_AGENT", "radio/2", "radio/2"),
    "allow_insecure_keys": ("PARAKEET_ALLOW_INSECURE_KEYS", "true", True),
    "port": ("PORT", "80", 80),
    "port_health": ("PORT_HEALTH", "81", 81),
    "api_keys": ("PARAKEET_API_KEYS", "one,two", "one,two"),
    "allowed_hosts": ("PARAKEET_ALLOWED_HOSTS", "desk.local", "desk.local"),
    "cors_origins": ("PARAKEET_CORS_ORIGINS", "https://example.com", "https://example.com"),
    "max_requests": ("PARAKEET_MAX_REQUESTS", "8", 8),
    "max_connections": ("PARAKEET_MAX_CONNECTIONS", "100", 100),
    "max_json_bytes": ("PARAKEET_MAX_JSON_BYTES", "1000", 1000),
    "idle_timeout_seconds": ("PARAKEET_IDLE_TIMEOUT_SECONDS", "5", 5.0),
    "upload_timeout_seconds": ("PARAKEET_UPLOAD_TIMEOUT_SECONDS", "60", 60.0),
    "stop_timeout_seconds": ("PARAKEET_STOP_TIMEOUT_SECONDS", "10", 10.0),
}


def test_every_field_has_a_row_here():
    assert set(READ) == set(Settings.model_fields)


@pytest.mark.parametrize(("field", "name", "text", "parsed"), [(f, *r) for f, r in READ.items()])
def test_every_field_is_read_from_its_variable(field, name, text, parsed):
    settings = Settings.from_environment({name: text})
    assert getattr(settings, field) == parsed
    assert parsed != getattr(Settings(), field)
    assert settings == Settings().model_copy(update={field: parsed})
    assert variable(field) == name


def test_all_fields_are_read_together_from_any_mapping():
    environment = MappingProxyType({name: text for name, text, _ in READ.values()})
    settings = Settings.from_environment(environment)
    assert settings.model_dump() == {field: value for field, (_, _, value) in READ.items()}


def test_an_empty_environment_gives_the_defaults():
    assert Settings.from_environment({}) == Settings()


@pytest.mark.parametrize("name", [name for name, _, _ in READ.values()])
def test_an_empty_string_counts_as_unset(name):
    assert Settings.from_environment({name: ""}) == Settings()


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("PARAKEET_MODLE", "PARAKEET_MODEL"),
        ("PARAKEET_MAX_AUDIO_SECOND", "PARAKEET_MAX_AUDIO_SECONDS"),
        ("PARAKEET_S3_BUCKET", "S3_BUCKET"),
        ("PARAKEET_SEGMENT_SECS", "PARAKEET_SEGMENT_SECONDS"),
        ("PARAKEET_", None),
        ("PARAKEET_QQQQQQQQ", None),
    ],
)
def test_an_unknown_name_is_an_error_with_the_nearest_right_name(wrong, right):
    with pytest.raises(InvalidSetting) as raised:
        Settings.from_environment({wrong: "1"})
    assert raised.value.facts["setting"] == wrong
    assert raised.value.facts.get("nearest") == right
    assert (f"did you mean {right}?" in str(raised.value)) == (right is not None)


def test_an_unknown_name_is_an_error_even_without_a_value():
    with pytest.raises(InvalidSetting):
        Settings.from_environment({"PARAKEET_MODLE": ""})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("PARAKEET_ENGINE", "nemo2"),
        ("PARAKEET_DEVICE", "tpu"),
        ("PARAKEET_CONCURRENCY", "0"),
        ("PARAKEET_CONCURRENCY", "-4"),
        ("PARAKEET_CONCURRENCY", "2.5"),
        ("PARAKEET_CONCURRENCY", "many"),
        ("PARAKEET_MAX_AUDIO_BYTES", "1GB"),
        ("PARAKEET_MAX_AUDIO_SECONDS", "inf"),
        ("PARAKEET_MAX_AUDIO_SECONDS", "nan"),
        ("PARAKEET_MAX_AUDIO_SECONDS", "0"),
        ("PARAKEET_DOWNLOAD_TIMEOUT_SECONDS", "-1"),
        ("PARAKEET_STALL_TIMEOUT_SECONDS", "soon"),
        ("PARAKEET_DECODE_TIMEOUT_SECONDS", "0"),
        ("PARAKEET_ALLOW_PRIVATE_ADDRESSES", "perhaps"),
        ("PARAKEET_SEGMENT_SECONDS", "1.9"),
        ("PARAKEET_SEGMENT_SECONDS", "61"),
        ("PARAKEET_SEGMENT_SECONDS", "nan"),
        ("PARAKEET_BATCH_SECONDS", "0"),
        ("PARAKEET_QUEUE_SECONDS", "0"),
        ("PARAKEET_ENGINE_TIMEOUT_SECONDS", "1e10"),
        ("PARAKEET_MAX_AUDIO_SECONDS", "1e308"),
        ("PARAKEET_BATCH_SECONDS", "1e308"),
        ("PARAKEET_INGEST_PROCESSES", "65"),
        ("PARAKEET_DECODER_MEMORY_BYTES", "9" * 23),
        ("PARAKEET_SCRATCH_LEAST_BYTES", "9" * 23),
        ("PARAKEET_MAX_AUDIO_BYTES", "9" * 23),
        ("S3_ENDPOINT", "http://minio:99999"),
    ],
)
def test_an_invalid_value_is_an_error_with_variable_and_value(name, text):
    with pytest.raises(InvalidSetting) as raised:
        Settings.from_environment({name: text})
    assert raised.value.facts["setting"] == name
    assert str(raised.value).startswith(f"invalid_setting: {name}: ")
    assert f"'{text}'" in str(raised.value)


PATHS = ["MODEL", "CONVERTED", "KERNEL_CACHE", "SCRATCH", "FFMPEG"]


@pytest.mark.parametrize("name", PATHS)
def test_a_path_in_a_home_folder_is_expanded_or_refused(name, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    settings = Settings.from_environment({f"PARAKEET_{name}": "~/folder"})
    assert str(getattr(settings, name.lower())) == "/home/me/folder"
    with pytest.raises(InvalidSetting, match=f"PARAKEET_{name}: .*no home folder"):
        Settings.from_environment({f"PARAKEET_{name}": "~no-such-user/folder"})


@pytest.mark.parametrize(
    "name",
    ["PATH", "S3_BUCKETS", "MODEL", "XPARAKEET_MODEL", "parakeet_model", "AWS_SECRET_ACCESS_KEY"],
)
def test_variables_of_other_programs_are_ignored(name):
    assert Settings.from_environment({name: "x"}) == Settings()


def test_settings_cannot_be_changed():
    settings = Settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.model = "other"  # type: ignore[misc]


def test_secrets_are_not_in_the_representation():
    settings = Settings.from_environment({"S3_SECRET_KEY": "hush-hush", "S3_BUCKET": "talks"})
    assert "talks" in repr(settings)
    assert "hush-hush" not in repr(settings) + str(settings)


def test_every_field_is_described_and_quantities_have_units():
    for name, field in Settings.model_fields.items():
        assert re.fullmatch(r".+\.", field.description or "", re.DOTALL), name
        if field.annotation is float:
            assert name.endswith("_seconds"), name


def test_the_defaults_can_be_written_as_variables():
    variables = {
        variable(field): str(value).lower() if isinstance(value, bool) else str(value)
        for field, value in Settings().model_dump().items()
        if value is not None
    }
    in_home = Settings().converted.expanduser()
    assert Settings.from_environment(variables) == Settings(converted=in_home)


@pytest.mark.parametrize(
    "name", ["S3_ACCESS_KEY", "S3_SECRET_KEY", "S3_SESSION_TOKEN", "PARAKEET_API_KEY"]
)
def test_a_trailing_line_break_of_a_secret_is_removed_and_the_secret_never_shown(name):
    settings = Settings.from_environment({name: "hush\n"})
    assert "hush" in settings.model_dump().values()
    assert "hush" not in repr(settings)
    for value in ("hush\nX: 1", "hu\x00sh", "hush\u00fc"):
        with pytest.raises(InvalidSetting, match=name) as raised:
            Settings.from_environment({name: value})
        assert "hu" not in str(raised.value).replace(name, "")
        assert raised.value.__cause__ is None


@pytest.mark.parametrize(
    "address", ["minio:9000", "s3.example.com", "ftp://a.test", "http://", "http://a b"]
)
def test_an_s3_endpoint_that_is_not_a_url_is_rejected(address):
    with pytest.raises(InvalidSetting, match="S3_ENDPOINT"):
        Settings.from_environment({"S3_ENDPOINT": address})


def test_whitespace_is_removed_from_an_s3_endpoint_and_rejected_in_a_region():
    assert (
        Settings.from_environment({"S3_ENDPOINT": "http://a.test\n"}).s3_endpoint == "http://a.test"
    )
    with pytest.raises(InvalidSetting, match="S3_REGION"):
        Settings.from_environment({"S3_REGION": "eu west"})
