"""The environment as a container's platform writes it: values cleaned, what is not ours left out.

Every way in calls `clean` first, so that libraries see the same as the settings do.
"""

import os
import pwd
import re
import tempfile
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path

from parakeet_worker.errors import InvalidSetting

# Of these an empty value means none, and blanks around one are an accident.
_PREFIXES = (
    "PARAKEET_", "RUNPOD_", "S3_", "AWS_", "HF_", "HUGGINGFACE_", "TRANSFORMERS_", "XDG_", "TORCH_",
    "TRITON_", "UV_", "PIP_",
)  # fmt: skip
_NAMES = frozenset({
    "HOME", "TMPDIR", "PORT", "PORT_HEALTH", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE", "OMP_NUM_THREADS", "PYTHONPATH",
})  # fmt: skip
# What Kubernetes sets for a service whose name begins with `parakeet`, and Docker for a link.
_FOREIGN = {
    re.compile(r"PARAKEET(_\w+)?_SERVICE_HOST"): re.compile(r"[\w.:-]*"),
    re.compile(r"PARAKEET(_\w+)?_SERVICE_PORT(_\w+)?"): re.compile(r"\d*"),
    re.compile(r"PARAKEET(_\w+)?_PORT"): re.compile(r"(tcp|udp|sctp)://\S*"),
    re.compile(r"PARAKEET(_\w+)?_PORT_\d+_(TCP|UDP|SCTP)"): re.compile(r"(tcp|udp|sctp)://\S*"),
    re.compile(r"PARAKEET(_\w+)?_PORT_\d+_(TCP|UDP|SCTP)_(ADDR|PORT|PROTO)"): re.compile(r".*"),
    re.compile(r"PARAKEET(_\w+)?_NAME"): re.compile(r"/\S*/\S*"),
    re.compile(r"PARAKEET(_\w+)?_ENV_\w+"): re.compile(r".*", re.DOTALL),
}
_HOME = "parakeet-home-"


def foreign(name: str, value: str) -> bool:
    """Whether a platform has set it for a service that happens to have our name."""
    return any(
        named.fullmatch(name) and valued.fullmatch(value.strip())
        for named, valued in _FOREIGN.items()
    )


def value(environment: Mapping[str, str], name: str) -> str | None:
    """One of our variables without blanks around it; None where nothing is left.

    Raises `InvalidSetting` for one in quotes, which a file of variables keeps, and for one with
    a line break. The message never repeats the value, as it may be a secret.
    """
    text = environment.get(name, "").strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'`":
        raise InvalidSetting(name, f"has quotes ({text[0]}) around its value; leave them out")
    if "\n" in text or "\r" in text or "\0" in text:
        raise InvalidSetting(name, "has a line break in its value")
    return text or None


def clean(environment: MutableMapping[str, str]) -> list[str]:
    """Clean the process's environment in place; what the operator should know, a line each.

    Empty values are removed and blanks around others stripped, of our variables and of the
    libraries' that we use. Where there is neither `HOME` nor an entry for the user, or no folder
    for temporary files, one is named.
    """
    for name in list(environment):
        if name.startswith(_PREFIXES) or name in _NAMES:
            stripped = environment[name].strip()
            if not stripped:
                del environment[name]
            elif stripped != environment[name]:
                environment[name] = stripped
    warnings = []
    others = sorted(name for name in environment if foreign(name, environment[name]))
    if others:
        warnings.append(f"ignored, set by the platform for a service: {', '.join(others)}")
    _name_temporary_folder(environment)
    warnings.extend(name_home(environment))
    return warnings


def name_home(environment: MutableMapping[str, str]) -> list[str]:
    """Set `HOME` where there is neither that nor an entry for the user; the warning about it."""
    if "HOME" in environment or _has_entry():
        return []
    environment["HOME"] = str(_home())
    text = f"there is no HOME and no user {os.getuid()} in passwd; caches go to"
    return [f"{text} {environment['HOME']}, and are lost with this container"]


def expanded(text: str, name: str) -> Path:
    """A path with `~` for the home; raises `InvalidSetting` where there is none."""
    try:
        return Path(text).expanduser()
    except RuntimeError as failure:
        raise InvalidSetting(name, f"{text!r}: there is no home folder: {failure}") from failure


def _name_temporary_folder(environment: MutableMapping[str, str]) -> None:
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        scratch = environment.get("PARAKEET_SCRATCH")
        if scratch:
            tempfile.tempdir = environment["TMPDIR"] = scratch


def _has_entry() -> bool:
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    return True


def _home() -> Path:
    """The user's own folder among the temporary ones; never one that somebody else has planted."""
    try:
        folder = Path(tempfile.gettempdir()) / f"{_HOME}{os.getuid()}"
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        state = folder.lstat()
        if state.st_uid == os.getuid() and folder.is_dir() and not folder.is_symlink():
            return folder
        return Path(tempfile.mkdtemp(prefix=_HOME))
    except OSError:
        return Path("/")
