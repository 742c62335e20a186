"""Names, redirects and the border between public and private, on an internet of one's own."""

import json
import shutil
import subprocess
from typing import Any

import pytest

import small_internet

# Outcome of a download, requests that reached the inner machine, and DNS queries.
CASES: dict[str, tuple[str, int, int]] = {
    "http://public.test/": ("hello", 0, 1),
    "http://public.test/to-public": ("hello", 0, 2),
    "http://inside.test/": ("source_forbidden", 0, 1),
    "http://public.test/to-loopback": ("source_forbidden", 0, 1),
    "http://public.test/to-name": ("source_forbidden", 0, 2),
    # A second query for this name would return the inner address.
    "http://turncoat.test/": ("hello", 0, 1),
    "http://both.test/": ("hello", 0, 1),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare on this machine")
    if subprocess.run([*small_internet.UNSHARE, "true"], check=False).returncode != 0:
        pytest.skip("this machine does not permit namespaces")
    ended = small_internet.run(tmp_path_factory.mktemp("internet"), list(CASES))
    assert ended.returncode == 0, ended.stderr
    return dict(zip(CASES, json.loads(ended.stdout), strict=True))


@pytest.mark.parametrize("address", CASES)
def test_the_address_that_was_checked_is_the_one_connected_to_at_every_hop(
    address: str, outcomes: dict[str, Any]
) -> None:
    became, inside, lookups = CASES[address]
    assert outcomes[address] == {"became": became, "inside": inside, "lookups": lookups}
