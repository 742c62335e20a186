"""Paths below the home folder on the volume."""

import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from parakeet_worker.errors import VolumeFull
from parakeet_worker.volume.files import translate_os_errors, write_atomic


@dataclass(frozen=True, slots=True)
class Volume:
    """The home folder, `PARAKEET_HOME`; it may not exist yet."""

    home: Path

    @property
    def venv(self) -> Path:
        """Symbolic link to the environment that was started last."""
        return self.home / "venv"

    @property
    def marker(self) -> Path:
        """JSON file with the name and the packages of that environment."""
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
        """One file per process and environment that it runs in."""
        return self.home / "uses"

    @property
    def tools(self) -> Path:
        return self.home / "tools"

    @property
    def uv_cache(self) -> Path:
        """Downloads of an unfinished installation, reused by a worker that takes over."""
        return self.home / "uv_cache"

    def prepare(self) -> None:
        """Create the folders and check that files can be written; raises `SetupError`."""
        with translate_os_errors(self.home):
            folders = (self.hf_home, self.hf_hub_cache, self.environments, self.leases, self.uses)
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True)
            write_atomic(self.home / ".writable", "")
            (self.home / ".writable").unlink(missing_ok=True)

    def check_space(self, needed_gib: float) -> None:
        """Raise `VolumeFull` if less than `needed_gib` is free."""
        free_gib = shutil.disk_usage(self.home).free / 2**30
        if free_gib < needed_gib:
            raise VolumeFull(str(self.home), round(free_gib, 2), needed_gib)

    def model_revisions(self) -> Mapping[str, str]:
        """Map each model in the Hugging Face cache to the commit of its `main` branch."""
        revisions = {}
        for reference in sorted(self.hf_hub_cache.glob("models--*/refs/main")):
            name = reference.parent.parent.name.removeprefix("models--").replace("--", "/")
            with suppress(OSError):
                revisions[name] = reference.read_text().strip()
        return revisions
