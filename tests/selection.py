"""pytest's hooks for `--quick` and `--measure`, and the table of seconds that both share.

The table has the processor seconds of each test file, and of its slow tests. Tests that are not in
it count as fast: it needs no entry for a new test.
"""

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import psutil
import pytest

SLOW_SECONDS = 0.7
"""Tests whose first case takes as long are left out by `--quick`."""
_TABLE = Path("tests") / "seconds.json"
_PROPERTY = "processor_seconds"
_ME = psutil.Process()

Table: TypeAlias = dict[str, dict[str, float]]
"""By test file and function; a file's total has the name `total`."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--quick",
        action="store_true",
        help="run the first case of each test only, and no slow test unless all of a file are slow",
    )
    parser.addoption(
        "--measure",
        action="store_true",
        help=f"write the processor seconds of the tests that run to {_TABLE}",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("measure") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Measurement(config.rootpath / _TABLE))


def read(path: Path) -> Table:
    """The table; empty if there is none."""
    table: Table = json.loads(path.read_text()) if path.exists() else {}
    return table


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Start the longest files first, so that parallel processes end together; select `--quick`."""
    table = read(config.rootpath / _TABLE)
    items.sort(key=lambda item: -table.get(_names(item.nodeid)[0], {}).get("total", 0.0))
    if config.getoption("quick"):
        chosen = set(quick([item.nodeid for item in items], table))
        left_out = [item for item in items if item.nodeid not in chosen]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item.nodeid in chosen]


def quick(nodes: Sequence[str], table: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """The first case of each test that is not slow, and of each file at least its fastest test."""
    files: dict[str, dict[str, str]] = defaultdict(dict)
    for node in nodes:
        file, function = _names(node)
        files[file].setdefault(function, node)
    for file, first_cases in files.items():
        seconds = {function: table.get(file, {}).get(function, 0.0) for function in first_cases}
        limit = max(SLOW_SECONDS, min(seconds.values()) + 0.01)
        yield from (first_cases[name] for name in first_cases if seconds[name] < limit)


def _names(node: str) -> tuple[str, str]:
    """The file, and the function without the parameters of a case."""
    file, _, function = node.partition("[")[0].partition("::")
    return file, function


# measurement


def _spent() -> float:
    """Processor seconds of this process and of its children so far."""
    times = os.times()
    seconds = times.user + times.system + times.children_user + times.children_system
    for child in _ME.children(recursive=True):
        try:
            used = child.cpu_times()
        except psutil.Error:
            continue
        seconds += used.user + used.system + used.children_user + used.children_system
    return seconds


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Note the seconds at the start; xdist's processes report them with the test."""
    if item.config.getoption("measure"):
        item.user_properties.append((_PROPERTY, _spent()))
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    if call.when == "call" and item.user_properties[-1:]:
        name, before = item.user_properties[-1]
        if name == _PROPERTY and isinstance(before, float):
            item.user_properties[-1] = (_PROPERTY, max(0.0, _spent() - before))
    return (yield)


@dataclass(slots=True, eq=False)
class _Measurement:
    """Collects what the tests took, with all that was set up for them."""

    path: Path
    _totals: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _first: dict[tuple[str, str], float] = field(default_factory=dict)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call":
            return
        seconds = float(str(dict(report.user_properties)[_PROPERTY]))
        file, function = _names(report.nodeid)
        self._totals[file] += seconds
        self._first.setdefault((file, function), seconds)

    def pytest_sessionfinish(self) -> None:
        """Replace the entries of the files that ran."""
        table = read(self.path)
        for file, total in self._totals.items():
            table[file] = {"total": round(total, 1)} | {
                function: round(seconds, 1)
                for (path, function), seconds in self._first.items()
                if path == file and seconds >= SLOW_SECONDS
            }
        text = json.dumps(dict(sorted(table.items())), indent=1)
        self.path.write_text(f"{text}\n")
