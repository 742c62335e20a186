"""A small package set that installs in a moment: wheels, a lock file, and a container's root."""

import base64
import hashlib
import io
import json
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
UV = ROOT / ".cache" / "uv" / "bin" / "uv"
# The module that `handler.py` execs: prints its Python and arguments, sleeps `STAY` seconds.
_WORKER = """
import json, os, sys, time
import ear, mouth
keys = ("HF_HOME", "HF_HUB_CACHE", "PARAKEET_CONVERTED")
print(json.dumps({
    "python": sys.executable, "ear": ear.VERSION, "mouth": mouth.VERSION, "pid": os.getpid(),
    "arguments": sys.argv[1:], **{key: os.environ.get(key) for key in keys},
}), flush=True)
time.sleep(float(os.environ.get("STAY", "0")))
"""

# A build backend in a wheel: packs the module of a source distribution into a wheel.
BACKEND = """
import pathlib, zipfile

def build_wheel(folder, config=None, metadata=None):
    facts = dict(line.split(": ") for line in pathlib.Path("PKG-INFO").read_text().splitlines())
    name, version = facts["Name"], facts["Version"]
    info = f"{name}-{version}.dist-info"
    content = {
        f"{name}.py": pathlib.Path(f"{name}.py").read_text(),
        f"{info}/METADATA": f"Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
    }
    record = "".join(f"{path},,\\n" for path in (*content, f"{info}/RECORD"))
    made = f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(pathlib.Path(folder) / made, "w") as archive:
        for path, text in {**content, f"{info}/RECORD": record}.items():
            archive.writestr(path, text)
    return made
"""


def wheel(
    folder: Path, name: str, version: str, *, files: int = 40, data: Mapping[str, str] | None = None
) -> Path:
    """Write a wheel of one package with `files` modules and additional `data`."""
    info = f"{name}-{version}.dist-info"
    content = {
        f"{name}/__init__.py": f"VERSION = {version!r}\n",
        **{f"{name}/part{n}.py": f"X = {list(range(200))!r}\n" for n in range(files)},
        **(data or {}),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = [f"{path},sha256={_digest(text)},{len(text)}" for path, text in content.items()]
    content[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""])
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(made, "w") as archive:
        for path, text in content.items():
            archive.writestr(zipfile.ZipInfo(path), text)
    return made


def _digest(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _locked(name: str, version: str, file: Path) -> str:
    return f"{name}=={version} --hash=sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}\n"


@dataclass(frozen=True, slots=True)
class Site:
    """A container's root and a volume; `environment` has the variables of `handler.py`."""

    root: Path
    volume: Path
    wheels: Path

    @classmethod
    def at(cls, folder: Path) -> "Site":
        site = cls(folder / "app", folder / "Parakeet", folder / "wheels")
        source = site.root / "src" / "parakeet_worker"
        for name in ("bootstrap", "volume"):
            shutil.copytree(ROOT / "src" / "parakeet_worker" / name, source / name)
        shutil.copy(ROOT / "handler.py", site.root)
        for name in ("__init__.py", "errors.py", "version.py"):
            shutil.copy(ROOT / "src" / "parakeet_worker" / name, source)
        (source / "entrypoints").mkdir()
        (source / "entrypoints" / "queue.py").write_text(_WORKER)
        (site.root / "requirements").mkdir()
        shutil.copy(ROOT / "requirements" / "uv.txt", site.root / "requirements")
        site.lock("1.0")
        return site

    def lock(self, version: str, *, gib: float = 0.01) -> None:
        """Write wheels of `ear` and `mouth` of that version, and lock them."""
        for name in ("ear", "mouth"):
            wheel(self.wheels, name, version)
        self.lock_what_is_there(version, gib=gib)

    def lock_what_is_there(self, version: str, *, gib: float = 0.01, optional: str = "") -> None:
        """Lock `ear` and `mouth` in wheels that exist already."""
        names = ("ear", "mouth")
        lines = [_locked(name, version, self._wheel(name, version)) for name in names]
        folder = self.root / "requirements"
        (folder / "small.txt").write_text("".join(lines))
        (folder / "profiles.toml").write_text(
            f'[native]\nlock = "small.txt"\nimports = ["ear", "mouth"]\ndisk_gib = {gib}\n'
            + (f"optional = ['{optional}']\n" if optional else "")
        )

    def lock_source(
        self, name: str, version: str, requires: Sequence[str], build: Sequence[str]
    ) -> None:
        """Replace the lock of `name` by a source distribution, with locked `build` packages."""
        folder = self.root / "requirements"
        archive = self.wheels / f"{name}-{version}.tar.gz"
        project = (
            f"[build-system]\nrequires = {list(requires)!r}\n"
            'build-backend = "carpenter.backend"\n'
            f'[project]\nname = "{name}"\nversion = "{version}"\n'
        )
        content = {
            "pyproject.toml": project,
            f"{name}.py": f"VERSION = {version!r}\n",
            "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        }
        with tarfile.open(archive, "w:gz") as opened:
            for path, text in content.items():
                member = tarfile.TarInfo(f"{name}-{version}/{path}")
                member.size = len(text)
                opened.addfile(member, io.BytesIO(text.encode()))
        lines = (folder / "small.txt").read_text().splitlines(keepends=True)
        kept = [line for line in lines if not line.startswith(f"{name}==")]
        (folder / "small.txt").write_text("".join(kept) + _locked(name, version, archive))
        locked = [_locked(each, "1.0", self._wheel(each, "1.0")) for each in build]
        (folder / "build.txt").write_text("".join(locked))

    def _wheel(self, name: str, version: str) -> Path:
        return self.wheels / f"{name}-{version}-py3-none-any.whl"

    @property
    def command(self) -> list[str]:
        # The system's Python without packages, as in a container.
        python = Path(sys.base_prefix) / "bin" / "python3"
        return [str(python), str(self.root / "handler.py")]

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": "/usr/bin:/bin",
            "HOME": str(self.root),
            "PARAKEET_HOME": str(self.volume),
            "PARAKEET_INDEX_URL": "none",
            "PARAKEET_FIND_LINKS": str(self.wheels),
            "PARAKEET_UV": str(UV),
            "PARAKEET_LEASE_SECONDS": "2",
        }

    def environments(self) -> list[Path]:
        """Environments under their final names."""
        folder = self.volume / "environments"
        return sorted(path for path in folder.glob("*") if not path.name.startswith("."))

    def marker(self) -> dict[str, object]:
        marker: dict[str, object] = json.loads((self.volume / ".installation_complete").read_text())
        return marker
