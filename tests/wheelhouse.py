"""A small package set, so that installing takes a moment: wheels, a lock file, a worker's root."""

import base64
import hashlib
import json
import shutil
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
UV = ROOT / ".cache" / "uv" / "bin" / "uv"
# What `handler.py` would become; says where it runs and what it was given, and can stay.
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


def wheel(
    folder: Path, name: str, version: str, *, files: int = 40, data: Mapping[str, str] | None = None
) -> Path:
    """A wheel of one package with that many modules, and what else is to be in it."""
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


@dataclass(frozen=True, slots=True)
class Site:
    """A container's root and a volume; `environment` is what `handler.py` is started with."""

    root: Path
    volume: Path
    wheels: Path

    @classmethod
    def at(cls, folder: Path) -> "Site":
        site = cls(folder / "app", folder / "Parakeet", folder / "wheels")
        source = site.root / "src" / "parakeet_worker"
        shutil.copytree(ROOT / "src" / "parakeet_worker" / "bootstrap", source / "bootstrap")
        shutil.copy(ROOT / "handler.py", site.root)
        for name in ("__init__.py", "errors.py", "version.py"):
            shutil.copy(ROOT / "src" / "parakeet_worker" / name, source)
        (source / "entrypoints").mkdir()
        (source / "entrypoints" / "serverless.py").write_text(_WORKER)
        (site.root / "requirements").mkdir()
        shutil.copy(ROOT / "requirements" / "uv.txt", site.root / "requirements")
        site.lock("1.0")
        return site

    def lock(self, version: str, *, gib: float = 0.01) -> None:
        """Ask for `ear` and `mouth` of that version."""
        for name in ("ear", "mouth"):
            wheel(self.wheels, name, version)
        self.lock_what_is_there(version, gib=gib)

    def lock_what_is_there(self, version: str, *, gib: float = 0.01, optional: str = "") -> None:
        """The same, with wheels that were made before."""
        lines = []
        for name in ("ear", "mouth"):
            made = self.wheels / f"{name}-{version}-py3-none-any.whl"
            digest = hashlib.sha256(made.read_bytes()).hexdigest()
            lines.append(f"{name}=={version} --hash=sha256:{digest}\n")
        folder = self.root / "requirements"
        (folder / "small.txt").write_text("".join(lines))
        (folder / "profiles.toml").write_text(
            f'[native]\nlock = "small.txt"\nimports = ["ear", "mouth"]\ndisk_gib = {gib}\n'
            + (f"optional = ['{optional}']\n" if optional else "")
        )

    @property
    def command(self) -> list[str]:
        # The plain Python below the tests' environment, as a container has it.
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
        """Those under a final name."""
        folder = self.volume / "environments"
        return sorted(path for path in folder.glob("*") if not path.name.startswith("."))

    def marker(self) -> dict[str, object]:
        said: dict[str, object] = json.loads((self.volume / ".installation_complete").read_text())
        return said
