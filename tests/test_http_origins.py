"""Which names the server answers to, and which web pages may use it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from http_server import running_server
from parakeet_worker.entrypoints.http import origins, routes
from parakeet_worker.entrypoints.http.service import Service
from parakeet_worker.errors import InvalidSetting
from parakeet_worker.settings import Settings

HERE = "127.0.0.1:8000"
SITE = "https://desk.example"


@asynccontextmanager
async def client(host: str, **chosen: object) -> AsyncIterator[httpx.AsyncClient]:
    """Of a server that listens at `host`, without a network between."""
    settings = Settings.of({"engine": "tones", **chosen})
    app = origins.restrict(
        routes.application(Service(settings)), origins.for_address(settings, host)
    )
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url=f"http://{HERE}") as opened:
        yield opened


@pytest.mark.parametrize(
    "name", ["127.0.0.1:8000", "127.0.0.1", "localhost:8000", "LOCALHOST", "[::1]:8000"]
)
async def test_on_loopback_loopback_names_are_answered_to(name: str) -> None:
    async with client("127.0.0.1") as requested:
        answer = await requested.get("/health", headers={"host": name})
        assert answer.status_code == 200


@pytest.mark.parametrize(
    "name",
    ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example",
     "192.168.1.5:8000", "", "x" * 5000],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/", "/health", "/metrics", "/transcribe"])
async def test_on_loopback_no_other_name_is(name: str, path: str) -> None:
    async with client("127.0.0.1") as requested:
        for method in ("GET", "POST", "OPTIONS"):
            answer = await requested.request(method, path, headers={"host": name})
            assert (answer.status_code, answer.json()["code"]) == (403, "host_forbidden")
            assert len(answer.content) < 1000


async def test_a_page_of_another_site_is_refused_and_the_own_is_not() -> None:
    async with client("127.0.0.1") as requested:
        for origin in (SITE, "null", "http://127.0.0.1:9000", "http://localhost:8000"):
            for method in ("GET", "POST", "OPTIONS"):
                headers = {"origin": origin, "content-type": "text/plain"}
                answer = await requested.request(method, "/v1/models", headers=headers)
                assert answer.status_code == 403, origin
                assert answer.json()["error"]["code"] == "origin_forbidden"
                assert "access-control-allow-origin" not in answer.headers
        answer = await requested.get("/v1/models", headers={"origin": f"http://{HERE}"})
        assert answer.status_code == 200


async def test_elsewhere_any_name_is_answered_to_unless_there_is_a_list() -> None:
    async with client("0.0.0.0") as requested:
        for headers in ({"host": "api.example"}, {"host": "a.example", "origin": SITE}):
            assert (await requested.get("/health", headers=headers)).status_code == 200
    async with client("0.0.0.0", allowed_hosts="api.example, [::1]") as requested:
        for name, status in (("api.example:80", 200), ("[::1]", 200), ("127.0.0.1", 403)):
            assert (await requested.get("/health", headers={"host": name})).status_code == status


async def test_names_are_added_to_those_of_loopback() -> None:
    async with client("::1", allowed_hosts="desk.example") as requested:
        for name, status in (("desk.example", 200), ("localhost", 200), ("evil.example", 403)):
            assert (await requested.get("/health", headers={"host": name})).status_code == status
    async with client("127.0.0.1", allowed_hosts="*") as requested:
        assert (await requested.get("/health", headers={"host": "any.example"})).status_code == 200


@pytest.mark.parametrize("listed", [SITE, f"https://a.example, {SITE}", "*"])
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_allowed_origins_pass_preflight_and_read_responses(host: str, listed: str) -> None:
    async with client(host, cors_origins=listed, api_keys="key") as requested:
        preflight = {
            "origin": SITE,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type",
        }
        allowed = await requested.options("/transcribe", headers=preflight)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] in (SITE, "*")
        assert "POST" in allowed.headers["access-control-allow-methods"]
        assert "authorization" in allowed.headers["access-control-allow-headers"].lower()
        refused = await requested.post("/transcribe", headers={"origin": SITE}, json={})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] in (SITE, "*")


async def test_pages_of_other_sites_may_read_nothing() -> None:
    async with client("0.0.0.0", cors_origins=SITE) as requested:
        answer = await requested.get("/health", headers={"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in answer.headers
    async with client("127.0.0.1", cors_origins=SITE) as requested:
        answer = await requested.get("/health", headers={"origin": "https://evil.example"})
        assert answer.status_code == 403


@pytest.mark.parametrize("listed", ["desk.example", "https://desk.example/", "https://a/b"])
def test_what_is_no_origin_is_refused_at_start(listed: str) -> None:
    settings = Settings.of({"engine": "tones", "cors_origins": listed})
    with pytest.raises(InvalidSetting, match="PARAKEET_CORS_ORIGINS"):
        origins.restrict(routes.application(Service(settings)), settings)


def test_the_command_listens_for_loopback_names_alone(tmp_path) -> None:
    with running_server(tmp_path, {"PARAKEET_ENGINE": "tones"}) as server:
        assert httpx.get(f"{server.url}/health").status_code == 200
        answer = httpx.get(f"{server.url}/health", headers={"host": "evil.example"})
        assert answer.json()["code"] == "host_forbidden"
