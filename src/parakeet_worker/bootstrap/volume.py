"""The folder that outlives the container: its layout, and how it is written to."""

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from parakeet_worker.errors import VolumeFull, VolumeReadonly, VolumeUnusable

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REMOVED = ".removed-"
"""How the names begin of what is on its way out."""
_READONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


@dataclass(frozen=True, slots=True)
class Volume:
    """The plan's layout under one folder, and what was added to it."""

    home: Path

    @property
    def venv(self) -> Path:
        """A link to the environment that was started last."""
        return self.home / "venv"

    @property
    def marker(self) -> Path:
        """JSON: what that environment was found to hold."""
        return self.home / ".installation_complete"

    @property
    def hf_home(self) -> Path:
        return self.home / "hf_home"

    @property
    def hf_hub_cache(self) -> Path:
        return self.home / "hf_hub_cache"

    @property
    def converted(self) -> Path:
        return self.home / "converted"

    @property
    def environments(self) -> Path:
        return self.home / "environments"

    @property
    def leases(self) -> Path:
        return self.home / "leases"

    @property
    def uses(self) -> Path:
        return self.home / "uses"

    @property
    def tools(self) -> Path:
        return self.home / "tools"

    @property
    def uv_cache(self) -> Path:
        """Wheels on their way: what was fetched is not fetched again by who takes over."""
        return self.home / "uv_cache"

    def prepare(self) -> None:
        """Make the folders and write a byte; raises a `SetupError` that says why it cannot."""
        with problems_told(self.home):
            folders = (self.hf_home, self.hf_hub_cache, self.environments, self.leases, self.uses)
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.home / ".writable", "")
            (self.home / ".writable").unlink(missing_ok=True)

    def check_space(self, needed_gib: float) -> None:
        """Raise `VolumeFull` before work is begun that cannot be finished."""
        free_gib = shutil.disk_usage(self.home).free / 2**30
        if free_gib < needed_gib:
            raise VolumeFull(str(self.home), round(free_gib, 2), needed_gib)

    def model_revisions(self) -> Mapping[str, str]:
        """Model to the revision that the cache's `main` stands at."""
        found = {}
        for reference in sorted(self.hf_hub_cache.glob("models--*/refs/main")):
            name = reference.parent.parent.name.removeprefix("models--").replace("--", "/")
            with suppress(OSError):
                found[name] = reference.read_text().strip()
        return found


@contextmanager
def problems_told(home: Path) -> Iterator[None]:
    """An `OSError` about the volume becomes the `SetupError` that says what to do."""
    try:
        yield
    except OSError as failure:
        reason = failure.strerror or str(failure)
        if failure.errno in _FULL:
            raise VolumeFull(str(home)) from failure
        if failure.errno in _READONLY:
            raise VolumeReadonly(str(home), reason) from failure
        raise VolumeUnusable(str(home), reason) from failure


def write_whole(target: Path, content: str) -> None:
    """Under its final name only once it is complete."""
    aside = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        aside.write_text(content)
        aside.replace(target)
    except OSError:
        with suppress(OSError):
            aside.unlink()
        raise


def point(link: Path, target: Path) -> Path | None:
    """Make `link` point at `target` in one step; gives where a folder in its place was moved to."""
    relative = os.path.relpath(target, link.parent)
    if link.is_symlink() and str(link.readlink()) == relative:
        return None
    moved = None
    if link.is_dir() and not link.is_symlink():
        moved = link.rename(link.with_name(f"{link.name}.replaced-{secrets.token_hex(4)}"))
    aside = link.with_name(f".{link.name}.{secrets.token_hex(4)}")
    aside.symlink_to(relative)
    try:
        aside.replace(link)
    except OSError:
        aside.unlink()
        raise
    return moved


def remove(folder: Path) -> None:
    """Away under another name first: nobody finds it half removed under its own."""
    doomed = folder.with_name(f"{REMOVED}{secrets.token_hex(4)}")
    with suppress(OSError):
        if not folder.name.startswith(REMOVED):
            folder.rename(doomed)
            folder = doomed
        shutil.rmtree(folder, ignore_errors=True)


def read_json(path: Path) -> dict[str, object] | None:
    """A JSON object; None where there is none or it is torn."""
    try:
        said = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return said if isinstance(said, dict) else None
