"""The fields of `Settings` as types of keyword arguments."""

from pathlib import Path
from typing import Literal, TypedDict


class SettingsKeywords(TypedDict, total=False):
    """Every field of `Settings` except `model`, with its type before validation of bounds."""

    model_revision: str | None
    model_timeout_seconds: float
    model_name: str | None
    engine: Literal["native", "nemo", "tones"]
    device: Literal["auto", "cpu", "cuda"]
    vad_device: Literal["auto", "cpu"]
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"]
    kernels: Literal["auto", "off"]
    kernel_cache: Path | None
    reproducible: bool
    converted: Path
    threads: int | None
    concurrency: int
    max_audio_bytes: int
    max_audio_seconds: float
    download_timeout_seconds: float
    stall_timeout_seconds: float
    decode_timeout_seconds: float
    decoders: int
    ingest_processes: int | None
    decoder_memory_bytes: int
    resampling_precision: Literal["double", "single"]
    allow_private_addresses: bool
    user_agent: str
    job_timeout_seconds: float | None
    engine_timeout_seconds: float
    delivery_timeout_seconds: float
    max_result_bytes: int
    strict: bool
    log_text: bool
    segment_seconds: float
    batch_seconds: float | None
    audio_memory_bytes: int
    queue_seconds: float
    scratch: Path
    scratch_least_bytes: int
    ffmpeg: Path | None
    runpod_api_key: str | None
    runpod_endpoint_base_url: str
    api_key: str | None
    allow_insecure_keys: bool
    s3_access_key: str | None
    s3_secret_key: str | None
    s3_session_token: str | None
    s3_endpoint: str | None
    s3_bucket: str | None
    s3_region: str | None
    s3_addressing_style: Literal["auto", "path", "virtual"]
    s3_anonymous: bool
    s3_output_prefix: str
    port: int
    port_health: int | None
    api_keys: str | None
    allowed_hosts: str | None
    cors_origins: str | None
    max_requests: int
    max_connections: int
    max_json_bytes: int
    idle_timeout_seconds: float
    upload_timeout_seconds: float
    stop_timeout_seconds: float
