"""Sends the sample recordings through handler.py under RunPod's SDK, with the demo checkpoint."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "samples"
SHOWN = ("en", "de", "fr", "el", "uk", "pl", "es", "mt")
START_SECONDS = 120
TWO_SPEAKERS_SECONDS = (9.0, 24.2)
"""A part of the sample `minute` with two readers."""


def main() -> None:
    samples = {Path(entry["file"]).stem: entry for entry in _manifest()}
    shown = [samples[language] for language in SHOWN]
    print("The demo checkpoint is a small test model: twenty words in each of 25 languages.")
    print("Starting handler.py with the RunPod SDK's local API ...", flush=True)
    started = time.monotonic()
    with _local_endpoint() as url:
        print(f"... ready after {time.monotonic() - started:.1f} s\n")
        wrong = sum(_show(url, entry) for entry in shown)
        _show_times(url, shown[0])
        wrong += _show_speakers(url, samples["minute"])
    print(f"\n{len(shown) + 1 - wrong} of {len(shown) + 1} transcripts are as expected.")
    sys.exit(1 if wrong else 0)


def _manifest() -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads((SAMPLES / "manifest.json").read_text())
    return entries


def _show(url: str, entry: dict[str, Any]) -> bool:
    """Print the reference and the transcript; return whether they differ."""
    started = time.monotonic()
    output = _transcribe(url, {"audio_base64": _content(entry)})
    took = time.monotonic() - started
    text = output.get("text", output.get("error"))
    differs = text != entry["text"]
    print(f"{entry['file']:<10} {entry['seconds']:5.1f} s of audio, transcribed in {took:4.2f} s")
    print(f"  reference   {entry['text']}")
    print(f"  transcript  {text}{'   (differs)' if differs else ''}", flush=True)
    return differs


def _show_times(url: str, entry: dict[str, Any]) -> None:
    output = _transcribe(url, {"audio_base64": _content(entry), "timestamp": True})
    print(f'\n{entry["file"]} again, with "timestamp": true:')
    for word in output["timestamps"]["word"]:
        print(f"  {word['start']:6.2f} - {word['end']:5.2f}  {word['word']}")


def _show_speakers(url: str, entry: dict[str, Any]) -> bool:
    """Print a conversation with its speakers; return whether there are not two."""
    clip = dict(zip(("start", "end"), TWO_SPEAKERS_SECONDS, strict=True))
    job = {"audio_base64": _content(entry), "clip": clip, "speakers": True}
    output = _transcribe(url, job)
    lines = str(output.get("text", output.get("error"))).splitlines()
    place = "{start:g} s to {end:g} s".format(**clip)
    print(f'\n{entry["file"]}, {place}, with "speakers": true:')
    for line in lines:
        print(f"  {line}")
    speakers = {line.partition(":")[0] for line in lines}
    return speakers != {"Speaker 1", "Speaker 2"}


def _content(entry: dict[str, Any]) -> str:
    return base64.b64encode((SAMPLES / entry["file"]).read_bytes()).decode()


def _transcribe(url: str, job_input: dict[str, Any]) -> dict[str, Any]:
    answer = _post(f"{url}/runsync", {"input": job_input})
    output: dict[str, Any] = answer.get("output") or {"error": str(answer.get("error"))}
    return output


def _post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


@contextmanager
def _local_endpoint() -> Iterator[str]:
    """handler.py under the SDK's local API, on a free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = ROOT / ".cache" / "demo.log"
    log.parent.mkdir(exist_ok=True)
    command = [sys.executable, str(ROOT / "handler.py"), "--rp_serve_api"]
    with log.open("w") as output:
        server = subprocess.Popen(
            [*command, "--rp_api_host", "127.0.0.1", "--rp_api_port", str(port)],
            env={**os.environ, "PARAKEET_MODEL": "demo"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(server, url, log)
        yield url
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def _wait(server: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            sys.exit(f"handler.py ended with status {server.returncode}:\n{log.read_text()}")
        try:
            urllib.request.urlopen(f"{url}/docs", timeout=1).close()
        except (urllib.error.HTTPError, TimeoutError):
            return
        except OSError:
            time.sleep(0.1)
            continue
        return
    sys.exit(f"handler.py was not ready after {START_SECONDS} s; see {log}")


if __name__ == "__main__":
    main()
