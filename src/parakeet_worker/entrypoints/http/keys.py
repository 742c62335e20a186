"""API keys in `Authorization: Bearer` headers."""

import hmac
from hashlib import sha256

from parakeet_worker.errors import InvalidApiKey, InvalidSetting
from parakeet_worker.settings import variable

_SCHEME = "bearer"


class ApiKeys:
    """The configured API keys; without any, no key is required."""

    def __init__(self, listed: str | None) -> None:
        """`listed` is comma-separated; raises `InvalidSetting` if it contains no key."""
        keys = [key.strip() for key in (listed or "").split(",") if key.strip()]
        if listed is not None and not keys:
            # An empty list must not disable authentication.
            raise InvalidSetting(variable("api_keys"), "contains no key")
        self._digests = [_digest(key) for key in keys]

    def check(self, authorization: str | None) -> None:
        """Check an `Authorization` header; raises `InvalidApiKey`.

        Constant time: every key is compared, as a digest of fixed length.
        """
        scheme, _, key = (authorization or "").partition(" ")
        digest = _digest(key.strip())
        matches = [hmac.compare_digest(digest, each) for each in self._digests]
        if self._digests and not (any(matches) and scheme.lower() == _SCHEME):
            raise InvalidApiKey


def _digest(key: str) -> bytes:
    return sha256(key.encode("utf-8", "surrogateescape")).digest()
