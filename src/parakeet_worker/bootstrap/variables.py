"""Normalise the process environment: whitespace, quotes, empty values, variables of the platform.

Every entry point calls `clean` first, so that third-party libraries read the same values as
`Settings` does.
"""

import os
import pwd
import re
import tempfile
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path

from parakeet_worker.errors import InvalidSetting

# Variables of the project: `read_variable` rejects quotes around their values.
_OWN_PREFIXES = ("PARAKEET_", "S3_")
# Variables that third-party libraries or the platform read.
_OTHER_PREFIXES = (
    "RUNPOD_", "AWS_", "HF_", "HUGGINGFACE_", "TRANSFORMERS_", "XDG_", "TORCH_", "TRITON_", "UV_",
    "PIP_", "CUDA_",
)  # fmt: skip
_OTHER_NAMES = frozenset({
    "HOME", "TMPDIR", "PORT", "PORT_HEALTH", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE", "OMP_NUM_THREADS", "PYTHONPATH", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY",
    "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy",
})  # fmt: skip
# Their keys and tokens are sent in headers.
_HEADER_PREFIXES = ("AWS_", "HF_", "HUGGINGFACE_")
# An empty value of these has a meaning of its own, such as no visible GPU.
_EMPTY_ALLOWED = ("CUDA_",)
_QUOTES = "\"'`"
# Set by Kubernetes for a service, or by Docker for a link, whose name begins with `parakeet`.
_PLATFORM = {
    re.compile(r"PARAKEET(_\w+)?_SERVICE_HOST"): re.compile(r"[\w.:-]*"),
    re.compile(r"PARAKEET(_\w+)?_SERVICE_PORT(_\w+)?"): re.compile(r"\d*"),
    re.compile(r"PARAKEET(_\w+)?_PORT"): re.compile(r"(tcp|udp|sctp)://\S*"),
    re.compile(r"PARAKEET(_\w+)?_PORT_\d+_(TCP|UDP|SCTP)"): re.compile(r"(tcp|udp|sctp)://\S*"),
    re.compile(r"PARAKEET(_\w+)?_PORT_\d+_(TCP|UDP|SCTP)_(ADDR|PORT|PROTO)"): re.compile(r".*"),
    re.compile(r"PARAKEET(_\w+)?_NAME"): re.compile(r"/\S*/\S*"),
    re.compile(r"PARAKEET(_\w+)?_ENV_\w+"): re.compile(r".*", re.DOTALL),
}
_HOME_PREFIX = "parakeet-home-"


def is_set_by_platform(name: str, value: str) -> bool:
    """Whether name and value are those of a Kubernetes service or a Docker link."""
    return any(
        names.fullmatch(name) and values.fullmatch(value.strip())
        for names, values in _PLATFORM.items()
    )


def read_variable(environment: Mapping[str, str], name: str) -> str | None:
    """Return a variable of the project without surrounding whitespace; None if it is empty.

    Raises `InvalidSetting` for a value in quotes, as they remain from an environment file, and for
    a value with a line break. The message omits the value, which may be a secret.
    """
    text = environment.get(name, "").strip()
    if _is_quoted(text):
        raise InvalidSetting(name, f"has quotes ({text[0]}) around its value; leave them out")
    if "\n" in text or "\r" in text or "\0" in text:
        raise InvalidSetting(name, "has a line break in its value")
    return text or None


def reject_line_breaks(environment: Mapping[str, str]) -> None:
    """Raise `InvalidSetting` for a line break in a key or token of a third-party library.

    The library would send it in a header, and repeat the secret in its error.
    """
    for name, value in environment.items():
        if name.startswith(_HEADER_PREFIXES) and ("\n" in value.strip() or "\r" in value.strip()):
            raise InvalidSetting(name, "has a line break in its value")


def clean(environment: MutableMapping[str, str]) -> list[str]:
    """Normalise the process environment in place; return one warning per finding.

    Of the variables that the project and its libraries read, whitespace around values is removed,
    then empty values. Quotes around a value are removed from third-party variables; variables of
    the project keep them, and `read_variable` rejects them. Sets `HOME` and a folder for temporary
    files if the system has none.
    """
    unquoted = [name for name in list(environment) if _normalise(environment, name)]
    warnings = [f"removed the quotes around the value of {name}" for name in sorted(unquoted)]
    services = sorted(name for name in environment if is_set_by_platform(name, environment[name]))
    if services:
        warnings.append(f"ignored, set by the platform for a service: {', '.join(services)}")
    _set_temporary_folder(environment)
    warnings.extend(ensure_home(environment))
    return warnings


def _normalise(environment: MutableMapping[str, str], name: str) -> bool:
    """Normalise one value; return whether quotes were removed."""
    own = name.startswith(_OWN_PREFIXES)
    if not own and not name.startswith(_OTHER_PREFIXES) and name not in _OTHER_NAMES:
        return False
    value = environment[name].strip()
    quoted = not own and _is_quoted(value)
    if quoted:
        value = value[1:-1].strip()
    if not value and not name.startswith(_EMPTY_ALLOWED):
        del environment[name]
    elif value != environment[name]:
        environment[name] = value
    return quoted


def _is_quoted(text: str) -> bool:
    return len(text) > 1 and text[0] == text[-1] and text[0] in _QUOTES


def ensure_home(environment: MutableMapping[str, str]) -> list[str]:
    """Set `HOME` if it is unset and the user has no passwd entry; return the warning, if any."""
    if "HOME" in environment or _has_passwd_entry():
        return []
    environment["HOME"] = str(_temporary_home())
    text = f"there is no HOME and no user {os.getuid()} in passwd; caches go to"
    return [f"{text} {environment['HOME']}, and are lost with this container"]


def expand_home(text: str, name: str) -> Path:
    """Expand `~` in the value of variable `name`; raises `InvalidSetting` if there is no home."""
    try:
        return Path(text).expanduser()
    except RuntimeError as failure:
        raise InvalidSetting(name, f"{text!r}: there is no home folder: {failure}") from failure


def _set_temporary_folder(environment: MutableMapping[str, str]) -> None:
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        scratch = environment.get("PARAKEET_SCRATCH")
        if scratch:
            tempfile.tempdir = environment["TMPDIR"] = scratch


def _has_passwd_entry() -> bool:
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    return True


def _temporary_home() -> Path:
    """A folder per user among the temporary files; a folder of another user is not trusted."""
    try:
        folder = Path(tempfile.gettempdir()) / f"{_HOME_PREFIX}{os.getuid()}"
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        state = folder.lstat()
        if state.st_uid == os.getuid() and folder.is_dir() and not folder.is_symlink():
            return folder
        return Path(tempfile.mkdtemp(prefix=_HOME_PREFIX))
    except OSError:
        return Path("/")
