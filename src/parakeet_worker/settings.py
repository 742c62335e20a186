"""The operator's settings: one frozen object, read from environment variables here only."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import gettempdir
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from parakeet_worker.bootstrap import variables
from parakeet_worker.bootstrap.settings import NAMES as BOOTSTRAP_NAMES
from parakeet_worker.errors import InvalidSetting, nearest, one_line
from parakeet_worker.wire.validation import first_problem

_PREFIX = "PARAKEET_"
# Names without the prefix: set by the platform, or common among S3 tools.
_PLAIN = {
    "s3_access_key": "S3_ACCESS_KEY",
    "s3_secret_key": "S3_SECRET_KEY",
    "s3_endpoint": "S3_ENDPOINT",
    "s3_bucket": "S3_BUCKET",
    "s3_region": "S3_REGION",
    "s3_session_token": "S3_SESSION_TOKEN",
    "s3_addressing_style": "S3_ADDRESSING_STYLE",
    "s3_anonymous": "S3_ANONYMOUS",
    "s3_output_prefix": "S3_OUTPUT_PREFIX",
    "runpod_api_key": "RUNPOD_API_KEY",
    "runpod_endpoint_base_url": "RUNPOD_ENDPOINT_BASE_URL",
    "port": "PORT",
    "port_health": "PORT_HEALTH",
}

_MAX_SECONDS = 1e9
"""Timers of threads and sockets accept little more."""
_MAX_COUNT = 1 << 62
"""Limits of processes and sizes of files are signed numbers of 64 bits."""
_PATHS = ("model", "converted", "kernel_cache", "scratch", "ffmpeg")
Seconds = Annotated[float, Field(gt=0, le=_MAX_SECONDS, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0, le=_MAX_COUNT)]
Port = Annotated[int, Field(ge=0, le=65535)]


def _header_text(value: str) -> str:
    """Text for an HTTP header. The message omits the value, which may be a secret."""
    text = value.strip()
    if not text or not text.isascii() or not text.isprintable():
        raise ValueError("must be printable ASCII on one line")
    return text


def _http_address(value: str) -> str:
    text = value.strip()
    parts = urlsplit(text)
    valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    if not valid or not text.isprintable() or " " in text:
        raise ValueError("must be a URL such as https://s3.example.com")
    return text


HeaderText = Annotated[str, AfterValidator(_header_text)]
HttpAddress = Annotated[str, AfterValidator(_http_address)]
S3Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")]


def _temporary_folder() -> Path:
    try:
        return Path(gettempdir())
    except FileNotFoundError as failure:
        reason = "there is no writable temporary folder; set one"
        raise InvalidSetting("PARAKEET_SCRATCH", reason) from failure


class Settings(BaseModel):
    """Settings of a worker; each field is an environment variable, see `variable`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: str = Field(default="nvidia/parakeet-tdt-0.6b-v3", min_length=1)
    """A Hugging Face name, the path of a `.nemo` file or of a `safetensors` folder, or `demo`."""
    model_revision: str | None = None
    """Branch, tag or commit of a Hugging Face name; the same as `name@revision` in the model."""
    model_timeout_seconds: Seconds = 3600.0
    """Timeout of a whole model download."""
    model_name: str | None = None
    """Name of the model in the HTTP API; by default `model`, or the last component of a path."""
    engine: Literal["native", "nemo", "tones"] = "native"
    """The engine: `native`, NVIDIA's `nemo` (needs a `.nemo` file and the extra `nemo`), or
    `tones` (no model: recognises pure tones, for tests)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the engine; `auto` uses a GPU if there is one."""
    vad_device: Literal["auto", "cpu"] = "auto"
    """Device of voice activity detection: `auto` uses the engine's, batched across recordings on a
    GPU; `cpu` processes each recording in its own thread."""
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = "auto"
    """Arithmetic of the encoder; `auto` is the fastest on the device: `bf16` on a GPU, `fp16` on an
    older one, `int8` on a CPU, `bf16` on a CPU with AMX."""
    kernels: Literal["auto", "off"] = "auto"
    """`auto` uses Triton kernels on GPUs that support them, `off` plain PyTorch, several times
    slower."""
    kernel_cache: Path | None = None
    """Read-only folder of kernels from `parakeet compile-kernels`; other kernels are compiled at
    the first start on a card, and cached in `kernels/` next to the converted model."""
    reproducible: bool = False
    """Make the text of a chunk independent of its batch on a GPU: by default libraries choose
    kernels by batch size, and in bfloat16 a few chunks differ."""
    converted: Path = Path("~/.cache/parakeet-worker")
    """Cache folder for the converted model: later starts read it instead of the checkpoint."""
    threads: Count | None = None
    """Maximum number of engine threads on a CPU; by default limited by the container's CPU
    quota."""
    concurrency: Count = 16
    """Maximum number of concurrent queue jobs per worker."""
    max_audio_bytes: Count = 1 << 30
    """Maximum size of an audio file, in bytes."""
    max_audio_seconds: Seconds = 4 * 3600.0
    """Maximum duration of a recording, or of the requested clip of it."""
    download_timeout_seconds: Seconds = 300.0
    """Timeout of an audio download, including retries and `Retry-After` delays."""
    stall_timeout_seconds: Seconds = 20.0
    """Seconds without data before a download is aborted, and timeout of opening a connection."""
    decode_timeout_seconds: Seconds = 1800.0
    """Timeout of decoding one file with ffmpeg."""
    decoders: Count = 32
    """Maximum number of recordings that are decoded concurrently. A long recording may use several
    ffmpeg processes while CPUs are idle."""
    ingest_processes: Annotated[int, Field(ge=0, le=64)] | None = None
    """Processes that decode, detect speech and cut recordings, about 100 MB each; 0 is threads of
    the worker. By default half as many as CPUs, at most 8, with a GPU and at least 4 CPUs."""
    decoder_memory_bytes: Annotated[int, Field(ge=128 << 20, lt=_MAX_COUNT)] = 512 << 20
    """Memory limit of one ffmpeg process, which needs about 90 MB as a rule; a file that needs more
    is `audio_undecodable`."""
    resampling_precision: Literal["double", "single"] = "double"
    """Arithmetic of ffmpeg's resampler. `single` takes a third less of ffmpeg's processor time for
    MP3 and AAC, but several times as much near silence on many processors, except with an ffmpeg
    that treats denormal numbers as zero, as the one of the images does."""
    allow_private_addresses: bool = False
    """Allow URLs that resolve to private, loopback and link-local addresses."""
    user_agent: HeaderText = "parakeet-worker"
    """`User-Agent` header of requests to `audio_url` and `output_url`."""
    job_timeout_seconds: Seconds | None = None
    """Timeout of one job; by default only the platform limits it."""
    engine_timeout_seconds: Seconds = 900.0
    """Timeout of one batch, after which the engine counts as lost."""
    delivery_timeout_seconds: Seconds = 300.0
    """Time limit for retries of delivering one answer to the platform, `output_url` or
    `output_s3`."""
    max_result_bytes: Count = 19_000_000
    """Maximum size of an answer; a larger one needs `output_url` or `output_s3`."""
    strict: bool = False
    """Reject options of OpenAI's API that have no effect here, instead of a warning."""
    log_text: bool = False
    """Log the transcript of each job in addition to its figures."""
    segment_seconds: Annotated[float, Field(ge=2, le=60)] = 30.0
    """Maximum duration of a chunk."""
    batch_seconds: Seconds | None = None
    """Maximum audio of one batch including padding: longest chunk times number of chunks; by
    default measured from the device's free memory."""
    audio_memory_bytes: Count = 512 << 20
    """Limit of decoded audio in the engine's queue over all recordings, in bytes (64,000 per
    second). Each recording may have one chunk there in any case, and buffers up to 12 MB."""
    queue_seconds: Seconds = 6 * 3600.0
    """Maximum audio in the engine's queue; beyond it new requests are rejected."""
    scratch: Path = Field(default_factory=_temporary_folder)
    """Parent folder of the scratch folders of jobs."""
    scratch_least_bytes: Annotated[int, Field(ge=0, lt=_MAX_COUNT)] = 64 << 20
    """Free bytes in that folder below which no jobs are taken."""
    ffmpeg: Path | None = None
    """Path of ffmpeg; by default the system's, else that of the package imageio-ffmpeg."""
    runpod_api_key: HeaderText | None = Field(default=None, repr=False)
    """API key of `parakeet transcribe --endpoint` for RunPod."""
    runpod_endpoint_base_url: str = "https://api.runpod.ai/v2"
    """Base URL of queue endpoints that are given by id."""
    api_key: HeaderText | None = Field(default=None, repr=False)
    """API key of `parakeet transcribe --endpoint` for a `parakeet serve`."""
    allow_insecure_keys: bool = False
    """Allow the client to send a key over plain `http` to another machine."""
    s3_access_key: HeaderText | None = Field(default=None, repr=False)
    """Access key for `audio_s3` and `s3://` URLs."""
    s3_secret_key: HeaderText | None = Field(default=None, repr=False)
    """Secret key for `audio_s3` and `s3://` URLs."""
    s3_session_token: HeaderText | None = Field(default=None, repr=False)
    """Session token of temporary keys."""
    s3_endpoint: HttpAddress | None = None
    """URL of an S3 service other than Amazon's."""
    s3_bucket: str | None = None
    """Default bucket."""
    s3_region: S3Word | None = None
    """Region, for services that require one."""
    s3_addressing_style: Literal["auto", "path", "virtual"] = "auto"
    """Position of the bucket in URLs: in the `path`, or in the host name (`virtual`); `auto` is
    `path` if `S3_ENDPOINT` is set."""
    s3_anonymous: bool = False
    """Read public buckets without keys."""
    s3_output_prefix: str = "transcripts/"
    """Prefix of keys of `output_s3`, added to keys without it, so that requests cannot overwrite
    other objects; `*` allows every key."""

    port: Port = 8000
    """Port of the HTTP server; 0 selects a free one."""
    port_health: Port | None = None
    """Additional port for health checks, for a platform that uses one."""
    api_keys: str | None = Field(default=None, repr=False)
    """Comma-separated API keys, of which the HTTP server requires one; unset disables
    authentication."""
    allowed_hosts: str | None = None
    """Comma-separated host names of the HTTP server, `*` for any; requests with another `Host`
    header get 403. On a loopback address, loopback names are always allowed and the default; on
    others the default is any name."""
    cors_origins: str | None = None
    """Comma-separated origins, such as `https://example.com`, whose web pages may use the HTTP
    server; `*` for all."""
    max_requests: Count = 64
    """Maximum number of concurrent HTTP requests; further ones get 503."""
    max_connections: Count = 4096
    """Maximum number of HTTP connections, including idle ones; further ones get 503."""
    max_json_bytes: Count = 32 << 20
    """Maximum size of a JSON body, in bytes; files are uploaded as forms."""
    idle_timeout_seconds: Seconds = 30.0
    """Seconds without data before an idle client connection is closed."""
    upload_timeout_seconds: Seconds = 600.0
    """Timeout of receiving a request body."""
    stop_timeout_seconds: Seconds = 300.0
    """Time limit for requests in progress when the HTTP server shuts down."""

    @property
    def kernel_folders(self) -> tuple[Path, ...]:
        """Folders of compiled kernels, in search order; new kernels are written to the last."""
        own = self.converted.expanduser() / "kernels"
        return (own,) if self.kernel_cache is None else (self.kernel_cache.expanduser(), own)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Settings":
        """Read `environment`; raises `InvalidSetting` for an unknown name or an invalid value."""
        known = {variable(field): field for field in cls.model_fields}
        for name in environment:
            valid = name in known or name in BOOTSTRAP_NAMES or not name.startswith(_PREFIX)
            if not valid and not variables.is_set_by_platform(name, environment[name]):
                names = [*known, *BOOTSTRAP_NAMES]
                raise InvalidSetting(name, "no such setting", _nearest(name, names))
        variables.reject_line_breaks(environment)
        values: dict[str, object] = {}
        for name, field in known.items():
            value = variables.read_variable(environment, name)
            if value is not None:
                in_home = field in _PATHS and value.startswith("~")
                values[field] = str(variables.expand_home(value, name)) if in_home else value
        return cls.of(values)

    @classmethod
    def of(cls, fields: Mapping[str, object]) -> "Settings":
        """Validate fields by name; raises `InvalidSetting`."""
        try:
            return cls.model_validate(fields)
        except ValidationError as failure:
            problem = first_problem(failure, cls)
            name = str(problem.path[0])
            field = cls.model_fields.get(name)
            secret = field is not None and not field.repr
            got = "" if secret else f", got {one_line(repr(problem.value))}"
            # The cause contains the value: omit it for a secret.
            raise InvalidSetting(variable(name), problem.reason + got) from (
                None if secret else failure
            )


def variable(field: str) -> str:
    """The environment variable of a field of `Settings`."""
    return _PLAIN.get(field, _PREFIX + field.upper())


def _nearest(name: str, known: Iterable[str]) -> str | None:
    """The most similar known variable, compared without the common prefix."""
    bare = {each.removeprefix(_PREFIX): each for each in known}
    match = nearest(name.removeprefix(_PREFIX), list(bare))
    return bare[match] if match else None
