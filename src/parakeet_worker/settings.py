"""The operator's choices, read from the environment in this one place and never changed after."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import gettempdir
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from parakeet_worker.bootstrap import variables
from parakeet_worker.bootstrap.choices import NAMES as BOOTSTRAP_NAMES
from parakeet_worker.errors import InvalidSetting, nearest, one_line
from parakeet_worker.wire.validation import first_problem

_PREFIX = "PARAKEET_"
# Names that the plan or the platform gives without the prefix; they are common property.
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

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0)]
Port = Annotated[int, Field(ge=0, le=65535)]


def _header_text(value: str) -> str:
    """Text that may travel in a header; the message never repeats it, as it may be a secret."""
    text = value.strip()
    if not text or not text.isascii() or not text.isprintable():
        raise ValueError("must be printable ASCII on one line")
    return text


def _http_address(value: str) -> str:
    text = value.strip()
    parts = urlsplit(text)
    named = parts.scheme in ("http", "https") and parts.hostname
    if not named or not text.isprintable() or " " in text:
        raise ValueError("must be an address such as https://s3.example.com")
    return text


HeaderText = Annotated[str, AfterValidator(_header_text)]
HttpAddress = Annotated[str, AfterValidator(_http_address)]
S3Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")]


def _temporary_folder() -> Path:
    try:
        return Path(gettempdir())
    except FileNotFoundError as failure:
        reason = "no temporary folder can be written to; name one"
        raise InvalidSetting("PARAKEET_SCRATCH", reason) from failure


class Settings(BaseModel):
    """What an operator may choose; every field is an environment variable, see `variable`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: str = Field(default="nvidia/parakeet-tdt-0.6b-v3", min_length=1)
    """A Hugging Face name, the path of a `.nemo` file or of a `safetensors` folder, or `demo`."""
    model_revision: str | None = None
    """Branch, tag or commit of a Hugging Face name; the same as `name@revision` in the model."""
    model_timeout_seconds: Seconds = 3600.0
    """How long the fetch of a model may take in all."""
    model_name: str | None = None
    """What the HTTP server calls the model; by default what `model` says, of a path its last
    part."""
    engine: Literal["native", "nemo", "tones"] = "native"
    """What transcribes: `native`, NVIDIA's `nemo` (a `.nemo` file, and the extra of that name), or
    `tones` (no model: hears pure tones, for tests)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the engine runs; `auto` takes the GPU where there is one."""
    vad_device: Literal["auto", "cpu"] = "auto"
    """Where speech is detected: beside the engine, all recordings in one batch on a GPU, or in any
    case on the processor, each by itself."""
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = "auto"
    """The encoder's arithmetic; `auto` takes what is fastest on the device: `bf16` on a GPU, or
    `fp16` where that is older; `int8` on a processor, or `bf16` where it has AMX."""
    kernels: Literal["auto", "off"] = "auto"
    """Whether a GPU computes in Triton kernels where it can, or in plain PyTorch, several times
    slower, in any case."""
    kernel_cache: Path | None = None
    """Folder of kernels that `parakeet compile-kernels` made, which is only read; others are
    compiled at the first start on a card, and kept in `kernels/` beside the converted model."""
    reproducible: bool = False
    """Give a chunk the same text alone and beside any others on a GPU: otherwise libraries choose
    their kernels by the size of a batch, and in bfloat16 a few chunks differ."""
    converted: Path = Path("~/.cache/parakeet-worker")
    """Folder for the model as it is served, made once: later starts read that instead."""
    threads: Count | None = None
    """Threads that the engine computes with on a processor, at most; by default as many as the
    container's quota of processors lets run."""
    concurrency: Count = 16
    """Jobs that one worker takes at a time."""
    max_audio_bytes: Count = 1 << 30
    """Largest file that is accepted, in bytes."""
    max_audio_seconds: Seconds = 4 * 3600.0
    """Longest recording, or clip of a recording, that is accepted."""
    download_timeout_seconds: Seconds = 300.0
    """How long a download may take, with its retries and the waits that a server asks for."""
    stall_timeout_seconds: Seconds = 20.0
    """How long a download may stand still, or a connection may take to open."""
    decode_timeout_seconds: Seconds = 1800.0
    """How long ffmpeg may take for one file."""
    decoders: Count = 32
    """Recordings that are decoded at a time; those beyond wait. A long one has more ffmpegs than
    one, while processors are free."""
    decoder_memory_bytes: Annotated[int, Field(ge=128 << 20)] = 512 << 20
    """Memory that one ffmpeg may allocate, of which recordings take about 90 MB; what needs more is
    `audio_undecodable`."""
    allow_private_addresses: bool = False
    """Let URLs point at private, loopback and link-local addresses."""
    user_agent: HeaderText = "parakeet-worker"
    """What the worker calls itself to the servers of `audio_url` and `output_url`."""
    job_timeout_seconds: Seconds | None = None
    """How long one job may take in all; by default as long as the platform lets it."""
    engine_timeout_seconds: Seconds = 900.0
    """How long the engine may work on one batch before it is taken for lost."""
    delivery_timeout_seconds: Seconds = 300.0
    """How long the delivery of one answer is tried again, to the platform, to `output_url` or to
    `output_s3`."""
    max_result_bytes: Count = 19_000_000
    """Largest answer that is sent; what is larger goes to `output_url` or `output_s3`."""
    strict: bool = False
    """Refuse options of OpenAI's API that have no effect here, in place of a warning."""
    log_text: bool = False
    """Put what was heard into the log, beside each job's figures."""
    segment_seconds: Annotated[float, Field(ge=2, le=60)] = 30.0
    """Longest piece that the engine is given at once."""
    batch_seconds: Seconds | None = None
    """Audio in one batch, counted with its padding: longest piece times pieces; by default as
    much as the device's memory is found to have room for."""
    audio_memory_bytes: Count = 512 << 20
    """Decoded audio that all recordings together may have at the engine, in bytes; 64,000 are a
    second. Each has one piece there in any case, and up to 12 MB on the way."""
    queue_seconds: Seconds = 6 * 3600.0
    """Audio that may wait for the engine before new work is refused."""
    scratch: Path = Field(default_factory=_temporary_folder)
    """Folder for each job's scratch folder."""
    scratch_least_bytes: Annotated[int, Field(ge=0)] = 64 << 20
    """Bytes that must be free in that folder for a job to be taken."""
    ffmpeg: Path | None = None
    """The ffmpeg to run; by default the system's, else the one that comes as a package."""
    runpod_api_key: HeaderText | None = Field(default=None, repr=False)
    """Key that `parakeet transcribe --endpoint` sends to RunPod."""
    runpod_endpoint_base_url: str = "https://api.runpod.ai/v2"
    """Where it finds a queue endpoint that is given by its id."""
    api_key: HeaderText | None = Field(default=None, repr=False)
    """Key that it sends to a `parakeet serve`."""
    allow_insecure_keys: bool = False
    """Let it send a key over plain `http` to another machine."""
    s3_access_key: HeaderText | None = Field(default=None, repr=False)
    """Access key for `audio_s3` and `s3://` addresses."""
    s3_secret_key: HeaderText | None = Field(default=None, repr=False)
    """Secret key for the same."""
    s3_session_token: HeaderText | None = Field(default=None, repr=False)
    """Session token that belongs to temporary keys."""
    s3_endpoint: HttpAddress | None = None
    """Endpoint of an S3 service other than Amazon's, with its scheme."""
    s3_bucket: str | None = None
    """Bucket of requests that name none."""
    s3_region: S3Word | None = None
    """Region, for services that insist on theirs."""
    s3_addressing_style: Literal["auto", "path", "virtual"] = "auto"
    """Where the bucket's name goes: into the `path`, or before the host's (`virtual`); `auto` is
    `path` where `S3_ENDPOINT` is set."""
    s3_anonymous: bool = False
    """Read public buckets without keys."""
    s3_output_prefix: str = "transcripts/"
    """What keys of `output_s3` begin with, put before those that do not, so that no request
    overwrites other objects; `*` allows every key."""

    port: Port = 8000
    """Where the HTTP server listens; 0 takes a free one."""
    port_health: Port | None = None
    """Where it listens beside that, for a platform that asks after its health elsewhere."""
    api_keys: str | None = Field(default=None, repr=False)
    """Keys, with commas between them, of which the HTTP server wants one; without, it wants
    none."""
    allowed_hosts: str | None = None
    """Names, with commas between them, that the HTTP server answers to, `*` for any; other
    `Host` headers get 403. Where it listens on loopback, loopback names are among them; elsewhere
    it answers to any name unless there is a list."""
    cors_origins: str | None = None
    """Sites, such as `https://example.com`, with commas between them, whose web pages may use the
    HTTP server; `*` for all."""
    max_requests: Count = 64
    """Requests that the HTTP server answers at a time; those beyond get 503."""
    max_connections: Count = 4096
    """Connections that the HTTP server holds at a time, idle ones with them; those beyond get
    503."""
    max_json_bytes: Count = 32 << 20
    """Largest JSON body that the HTTP server accepts, in bytes; a file is uploaded as a form."""
    idle_timeout_seconds: Seconds = 30.0
    """How long a connection to the HTTP server may stand still while it is the caller's turn."""
    upload_timeout_seconds: Seconds = 600.0
    """How long a request's body may take to come."""
    stop_timeout_seconds: Seconds = 300.0
    """How long the HTTP server goes on with what it has begun when it is told to stop."""

    @property
    def kernel_folders(self) -> tuple[Path, ...]:
        """Where compiled kernels are looked for, in this order; new ones go to the last."""
        own = self.converted.expanduser() / "kernels"
        return (own,) if self.kernel_cache is None else (self.kernel_cache.expanduser(), own)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Settings":
        """Read `environment`; raises `InvalidSetting` for an unknown name or a bad value."""
        known = {variable(field): field for field in cls.model_fields}
        for name in environment:
            ours = name in known or name in BOOTSTRAP_NAMES or not name.startswith(_PREFIX)
            if not ours and not variables.foreign(name, environment[name]):
                every = [*known, *BOOTSTRAP_NAMES]
                raise InvalidSetting(name, "no such setting", _nearest(name, every))
        given = {field: variables.value(environment, name) for name, field in known.items()}
        return cls.of({field: value for field, value in given.items() if value is not None})

    @classmethod
    def of(cls, fields: Mapping[str, object]) -> "Settings":
        """From fields by name; raises `InvalidSetting`."""
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
    """The known variable that was meant; the prefix that they share says nothing."""
    bare = {right.removeprefix(_PREFIX): right for right in known}
    meant = nearest(name.removeprefix(_PREFIX), list(bare))
    return bare[meant] if meant else None
