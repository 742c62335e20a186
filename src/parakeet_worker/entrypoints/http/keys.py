"""Bearer keys: who may ask."""

import hmac
from hashlib import sha256

from parakeet_worker.errors import InvalidApiKey, InvalidSetting
from parakeet_worker.settings import variable

_SCHEME = "bearer"


class Keys:
    """The keys of which a caller must send one; without any, everybody may ask."""

    def __init__(self, listed: str | None) -> None:
        """`listed` has commas between the keys; raises `InvalidSetting` if none is among them."""
        keys = [key.strip() for key in (listed or "").split(",") if key.strip()]
        if listed is not None and not keys:
            # An operator who names keys does not mean an open door.
            raise InvalidSetting(variable("api_keys"), "there is no key in it")
        self._digests = [_digest(key) for key in keys]

    def check(self, authorization: str | None) -> None:
        """Read an `Authorization` header; raises `InvalidApiKey`.

        How long it takes tells nothing of the keys: all are compared, by digests of one length.
        """
        scheme, _, given = (authorization or "").partition(" ")
        digest = _digest(given.strip())
        known = [hmac.compare_digest(digest, each) for each in self._digests]
        if self._digests and not (any(known) and scheme.lower() == _SCHEME):
            raise InvalidApiKey


def _digest(key: str) -> bytes:
    return sha256(key.encode("utf-8", "surrogateescape")).digest()
