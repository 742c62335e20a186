from pathlib import Path

import pytest

from http_server import serving
from parakeet_worker.entrypoints.http.keys import ApiKeys
from parakeet_worker.errors import InvalidApiKey, InvalidSetting
from test_http_routes import TONE


@pytest.mark.parametrize("value", ["Bearer one", "bearer two", "Bearer  one "])
def test_one_of_the_keys_is_enough(value):
    ApiKeys("one, two,").check(value)


@pytest.mark.parametrize(
    "value", [None, "", "one", "Bearer", "Bearer ", "Bearer on", "Bearer ones", "Basic one",
              "Bearer one,two", "Bearer \udcff"],
)  # fmt: skip
def test_anything_else_is_refused(value):
    with pytest.raises(InvalidApiKey):
        ApiKeys("one,two").check(value)


@pytest.mark.parametrize("value", [None, "Bearer x"])
def test_without_configured_keys_no_key_is_required(value):
    ApiKeys(None).check(value)


def test_an_empty_key_list_is_an_invalid_setting():
    with pytest.raises(InvalidSetting, match="PARAKEET_API_KEYS"):
        ApiKeys(" , ")


async def test_the_key_is_checked_before_the_body_and_not_for_health(tmp_path: Path):
    async with serving(tmp_path, api_keys="right") as server:
        for path in ("/transcribe", "/v1/audio/transcriptions", "/render"):
            refused = await server.client.post(path, files={"file": TONE})
            assert refused.status_code == 401, path
            assert refused.headers["www-authenticate"] == "Bearer"
            assert "invalid_api_key" in refused.text
        for path in ("/v1/models", "/v1/models/tones", "/metrics"):
            assert (await server.client.get(path)).status_code == 401, path
        for path in ("/ping", "/ready", "/health", "/", "/docs", "/openapi.json"):
            assert (await server.client.get(path)).status_code == 200, path
        server.client.headers["authorization"] = "Bearer right"
        answer = await server.client.post("/transcribe", files={"file": TONE})
        assert answer.json() == {"text": "440. 500."}
        assert (await server.client.get("/v1/models")).status_code == 200
        assert await server.metric('parakeet_errors_total{code="invalid_api_key"}') == 6
