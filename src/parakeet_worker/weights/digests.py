"""Digests of checkpoint files, compared with published ones and with names in a cache."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from parakeet_worker.weights.checkpoints import EXTRACTOR, SAFETENSORS

# Content of nvidia/parakeet-tdt-0.6b-v3 at revision 541d1f99c6b0c3cd0b11a95167540bb8edefd82b, as
# Hugging Face identifies it: sha256 of large files, git's sha1 of small ones.
_PUBLISHED: Mapping[str, str] = {
    "model.safetensors": "3a2026366188c8c68598edbbff92f8d11590a08e0ae2e6775544e7b07d6a5e11",
    "config.json": "969c65410a736e4a3922f968b3481b2418aba786",
    "processor_config.json": "7acffca89b7dd12e0ebcd085c7181c91cae6575c",
    "tokenizer.json": "a10a554cf61e38108756650018d5781ae9675c1d",
}
_SHA256_DIGITS = 64
_DIGEST = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class FileCheck:
    """A file of a checkpoint, and the result of comparing its digest."""

    path: Path
    size_bytes: int
    digest: str
    status: Literal["published", "as the cache names it", "unknown", "corrupt"]
    """`published`: identical to NVIDIA's file. `unknown`: no digest to compare with.
    `corrupt`: the content differs from the digest that is its name in a cache."""


def check_files(checkpoint: Path) -> Iterator[FileCheck]:
    """Read and check each file of a checkpoint that `find` returned."""
    names = (*SAFETENSORS, *EXTRACTOR)
    inside = [checkpoint / name for name in names if (checkpoint / name).exists()]
    for path in inside if checkpoint.is_dir() else [checkpoint]:
        yield _check_file(path)


def _check_file(path: Path) -> FileCheck:
    content = path.resolve()
    published = _PUBLISHED.get(path.name)
    # A Hugging Face cache names a blob by its digest.
    is_blob = content.parent.name == "blobs" and _DIGEST.fullmatch(content.name)
    named = content.name if is_blob else None
    actual = digest(content, named or published)
    status: Literal["published", "as the cache names it", "unknown", "corrupt"] = "unknown"
    if named is not None and actual != named:
        status = "corrupt"
    elif actual == published:
        status = "published"
    elif named is not None:
        status = "as the cache names it"
    return FileCheck(path, content.stat().st_size, actual, status)


def digest(path: Path, expected: str | None) -> str:
    """The sha256 of a file, or its git sha1 if `expected` has that length."""
    with path.open("rb") as opened:
        if expected is None or len(expected) == _SHA256_DIGITS:
            return hashlib.file_digest(opened, "sha256").hexdigest()
        header = f"blob {path.stat().st_size}\0".encode()
        return hashlib.sha1(header + opened.read(), usedforsecurity=False).hexdigest()
