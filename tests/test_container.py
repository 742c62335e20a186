"""Limits of containers, read from control group files, and the settings they lower."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from confined import control_group
from parakeet_worker.container import Container, fitted
from parakeet_worker.settings import Settings

VISIBLE = len(os.sched_getaffinity(0))
GIB = 1 << 30


def machine(root: Path, group: str, **files: str) -> Path:
    """Create a tree of control group files; `__` in a name is a `/`, `-` a dot."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(group)
    for name, content in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("-", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


V1 = "4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n0::/\n"


@pytest.mark.parametrize(
    ("group", "files", "processors", "memory"),
    [
        ("0::/\n", {}, VISIBLE, None),
        ("0::/\n", {"cpu.max": "max 100000\n", "memory.max": "max\n"}, VISIBLE, None),
        ("0::/\n", {"cpu.max": "50000 100000\n", "memory.max": f"{GIB}\n"}, 0.5, GIB),
        # Version 2 on the host: a group inside others, of which an outer one has the lowest limit.
        (
            "0::/a/b\n",
            {"a__b__cpu.max": "max 100000", "a__cpu.max": "75000 100000", "a__memory.max": "9999"},
            0.75,
            9999,
        ),
        (
            V1,
            {"cpu__cpu.cfs_quota_us": "50000", "cpu__cpu.cfs_period_us": "100000",
             "memory__memory.limit_in_bytes": "9223372036854771712"},
            0.5,
            None,
        ),
        (
            V1,
            {"cpu__docker__abc__cpu.cfs_quota_us": "25000",
             "cpu__docker__abc__cpu.cfs_period_us": "100000",
             "memory__docker__abc__memory.limit_in_bytes": f"{GIB}"},
            0.25,
            GIB,
        ),
        (V1, {"cpu__cpu.cfs_quota_us": "-1", "cpu__cpu.cfs_period_us": "100000"}, VISIBLE, None),
        ("0::/\n", {"cpu.max": "gibberish", "memory.max": ""}, VISIBLE, None),
    ],
)  # fmt: skip
def test_the_lowest_limit_of_all_groups_applies(
    tmp_path: Path, group: str, files: dict[str, str], processors: float, memory: int | None
) -> None:
    limits = Container.read(machine(tmp_path, group, **files))
    assert limits.processors == processors
    assert limits.memory_bytes == memory


def test_without_control_groups_there_are_no_limits(tmp_path: Path) -> None:
    limits = Container.read(tmp_path)
    assert (limits.processors, limits.memory_bytes) == (VISIBLE, None)
    assert Container.read().threads >= 1


def container(
    *, processors: float = 8.0, memory: int | None = None, descriptors: int = 1 << 20
) -> Container:
    return Container(processors, 8, memory, descriptors)


@pytest.mark.parametrize(("processors", "threads"), [(0.5, 1), (1.0, 1), (7.65, 7), (8.0, None)])
def test_threads_follow_the_quota(processors: float, threads: int | None) -> None:
    assert fitted(Settings(), container(processors=processors)).threads == threads


def test_memory_bounds_queue_decoders_and_buffers() -> None:
    small = fitted(Settings(), container(memory=2 * GIB))
    assert small.decoders == 5
    assert small.audio_memory_bytes == GIB // 4
    assert small.queue_seconds * 64_000 == GIB / 2
    assert fitted(Settings(), container(memory=64 * GIB)) == Settings()


def test_descriptors_bound_connections_and_requests() -> None:
    few = fitted(Settings(), container(descriptors=256))
    assert (few.max_connections, few.max_requests) == (96, 12)
    assert fitted(Settings(), container(descriptors=20_000)) == Settings()


def test_values_of_the_operator_are_kept_except_connections() -> None:
    chosen = Settings(
        threads=6, decoders=30, audio_memory_bytes=GIB, queue_seconds=9e8, max_requests=50,
        max_connections=1000,
    )  # fmt: skip
    narrow = fitted(chosen, container(processors=0.5, memory=GIB, descriptors=256))
    assert narrow == chosen.model_copy(update={"max_connections": 96})


# Prints the limits, and the settings of a pipeline under them.
OPENED = """
import resource
from parakeet_worker.container import Container
from parakeet_worker.settings import Settings
from parakeet_worker.worker import open_pipeline
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
limits = Container.read()
with open_pipeline(Settings(engine="tones", device="cpu")) as pipeline:
    used = pipeline.settings
print(limits.processors, limits.memory_bytes)
print(used.threads, used.decoders, used.max_requests)
"""


def opened(prefix: Sequence[str]) -> list[str]:
    command = [*prefix, sys.executable, "-c", OPENED]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def test_a_pipeline_is_opened_within_the_limits() -> None:
    assert opened([])[1].split()[2] == "12"


def test_limits_of_the_kernel_are_those_of_the_settings() -> None:
    with control_group(processors=0.5, memory_bytes=GIB) as prefix:
        assert opened(prefix) == [f"0.5 {GIB}", "1 2 12"]
