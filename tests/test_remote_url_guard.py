"""Which addresses may be connected to."""

import pytest

from parakeet_worker.remote import url_guard


@pytest.mark.parametrize(
    ("host", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("::ffff:8.8.8.8", True),
        ("2002:808:808::", True),
        ("64:ff9b::808:808", True),
        ("::ffff:10.0.0.1", False),
        ("2002:a00:1::", False),
        ("64:ff9b::a00:1", False),
        ("fe80::1%eth0", False),
    ],
)
def test_an_address_inside_an_address_is_the_one_that_counts(host: str, public: bool) -> None:
    assert url_guard._is_public(host) is public


@pytest.mark.parametrize(
    "host",
    ["192.0.0.1", "192.0.0.9", "192.0.0.255", "3fff::1", "3fff:fff::1", "5f00::1", "fec0::1"],
)
def test_reserved_ranges_are_not_public_on_any_python(host: str) -> None:
    assert not url_guard._is_public(host)


def test_an_address_is_shown_without_what_may_be_secret() -> None:
    shown = url_guard.redacted("https://me:hush@example.com/talk.mp3?X-Amz-Signature=hush")
    assert shown == "https://example.com/talk.mp3"
