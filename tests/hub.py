"""A model hub on loopback: the parts of Hugging Face's API that `huggingface_hub` uses."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from aiohttp import web

from loopback import WebServer

MODEL = "nvidia/tiny"


def _weights(content: bytes) -> bytes:
    """A safetensors file with one tensor."""
    offsets = {"dtype": "U8", "shape": [len(content)], "data_offsets": [0, len(content)]}
    header = json.dumps({"a": offsets}).encode()
    return len(header).to_bytes(8, "little") + header + content


FILES = {
    "model.safetensors": _weights(b"weights" * 100_000),
    "config.json": b'{"a": 1}',
    "tokenizer.json": b"{}",
    "preprocessor_config.json": b'{"b": 2}',
    "README.md": b"read me",
}


@dataclass(eq=False)
class Hub:
    """A hub with one model; its fields may be changed while it runs."""

    server: WebServer
    commit: str = "a" * 40
    files: dict[str, bytes] = field(default_factory=lambda: dict(FILES))
    cut: int = 0
    """Number of downloads of the weights that end halfway."""
    corrupted: int = 0
    """Number of downloads of the weights with other content of the same size."""
    failing: int = 0
    """Number of requests answered with `failing_status`."""
    failing_status: int = 503
    failing_headers: Mapping[str, str] = field(default_factory=dict)
    cas: str | None = None
    """URL of the xet host for the weights."""
    captive_portal: bool = False
    """Answer every request with an HTML page, as a captive portal does."""
    ranges: list[str] = field(default_factory=list)

    def open(self, revisions: tuple[str, ...] = ("main",)) -> None:
        """Serve these revisions and the commit."""
        self.server.at("/xet-token", self._token)
        for revision in (*revisions, self.commit):
            self.server.at(f"/api/models/{MODEL}/xet-read-token/{revision}", self._token)
            self.server.at(f"/api/models/{MODEL}/revision/{revision}", self._info)
            self.server.at(f"/api/models/{MODEL}/tree/{revision}", self._tree)
            for name in self.files:
                self.server.at(f"/{MODEL}/resolve/{revision}/{name}", self._file)

    def _is_failing(self) -> bool:
        self.failing -= 1
        return self.failing >= 0

    async def _info(self, _: web.Request) -> web.StreamResponse:
        if self.captive_portal:
            return web.Response(text="<html>log in</html>", content_type="text/html")
        if self._is_failing():
            return web.Response(status=self.failing_status, headers=self.failing_headers)
        siblings = [_sibling(name, content) for name, content in self.files.items()]
        return web.json_response({"id": MODEL, "sha": self.commit, "siblings": siblings})

    async def _token(self, _: web.Request) -> web.StreamResponse:
        token = {"casUrl": self.cas, "accessToken": "token", "exp": 2_000_000_000}
        headers = {
            "X-Xet-Cas-Url": str(self.cas),
            "X-Xet-Access-Token": "token",
            "X-Xet-Token-Expiration": "2000000000",
        }
        return web.json_response(token, headers=headers)

    async def _tree(self, _: web.Request) -> web.StreamResponse:
        return web.json_response([_entry(name, content) for name, content in self.files.items()])

    async def _file(self, request: web.Request) -> web.StreamResponse:
        if self._is_failing():
            return web.Response(status=self.failing_status, headers=self.failing_headers)
        name = request.path.rpartition("/")[2]
        content = self.files[name]
        start = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        if request.method == "GET" and start:
            self.ranges.append(request.headers["Range"])
        large = name == "model.safetensors" and request.method == "GET"
        if large and self.corrupted > 0:
            self.corrupted -= 1
            content = b"!" + content[1:]
        xet = {
            "X-Xet-Hash": "c" * 64,
            "X-Xet-Refresh-Route": f"{self.server.address}/xet-token",
        }
        answer = web.StreamResponse(
            status=206 if start else 200,
            headers={
                **(xet if self.cas and name == "model.safetensors" else {}),
                "ETag": f'"{_digest(name, self.files[name])}"',
                "X-Repo-Commit": self.commit,
                "Accept-Ranges": "bytes",
                "Content-Length": str(len(content) - start),
                "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}",
            },
        )
        await answer.prepare(request)
        if request.method == "GET":
            if large and self.cut > 0:
                self.cut -= 1
                await answer.write(content[start : start + (len(content) - start) // 2])
                assert request.transport is not None
                request.transport.close()
                return answer
            await answer.write(content[start:])
        await answer.write_eof()
        return answer


def _large(name: str) -> bool:
    return name.endswith((".safetensors", ".nemo"))


def _digest(name: str, content: bytes) -> str:
    """The digest by which Hugging Face identifies content."""
    if _large(name):
        return hashlib.sha256(content).hexdigest()
    blob = f"blob {len(content)}\0".encode() + content
    return hashlib.sha1(blob, usedforsecurity=False).hexdigest()


def _sibling(name: str, content: bytes) -> Mapping[str, object]:
    entry: dict[str, object] = {"rfilename": name, "size": len(content), "blobId": "0" * 40}
    if _large(name):
        return {
            **entry,
            "lfs": {"size": len(content), "sha256": _digest(name, content), "pointerSize": 130},
        }
    return {**entry, "blobId": _digest(name, content)}


def _entry(name: str, content: bytes) -> Mapping[str, object]:
    entry = {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
    if _large(name):
        large = {"oid": _digest(name, content), "size": len(content), "pointerSize": 130}
        return {**entry, "lfs": large}
    return {**entry, "oid": _digest(name, content)}
