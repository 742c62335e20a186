"""The selection of `scripts/test --quick`, and the table of seconds that it relies on."""

import ast
import json
from pathlib import Path

import pytest

from selection import SLOW_SECONDS, quick, read

TESTS = Path(__file__).resolve().parent
TABLE = read(TESTS / "seconds.json")
pytest_plugins = ("pytester",)


def test_of_each_test_the_first_case_is_selected() -> None:
    nodes = [
        "tests/test_a.py::test_x[1-2]",
        "tests/test_a.py::test_x[3-4]",
        "tests/test_a.py::test_y",
    ]
    assert list(quick(nodes, {})) == ["tests/test_a.py::test_x[1-2]", "tests/test_a.py::test_y"]


def test_slow_tests_are_left_out_but_never_all_of_a_file() -> None:
    nodes = ["test_a.py::test_x", "test_a.py::test_y", "test_b.py::test_x", "test_b.py::test_y"]
    table = {
        "test_a.py": {"total": 9.0, "test_x": SLOW_SECONDS},
        "test_b.py": {"total": 9.0, "test_x": 5.0, "test_y": 4.0},
    }
    assert list(quick(nodes, table)) == ["test_a.py::test_y", "test_b.py::test_y"]


def test_every_entry_of_the_table_is_a_test() -> None:
    """An entry without a test remains after a test is renamed."""
    for file, seconds in TABLE.items():
        tests = {
            node.name
            for node in ast.walk(ast.parse((TESTS.parent / file).read_text()))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        assert set(seconds) - {"total"} <= tests, file
        assert all(
            value >= SLOW_SECONDS for function, value in seconds.items() if function != "total"
        )


def test_measured_seconds_select_and_order_the_tests(pytester: pytest.Pytester) -> None:
    """Those of a child process too, and with xdist."""
    pytester.mkdir("tests")
    pytester.makeconftest("from selection import *")
    pytester.makepyfile(
        test_one="def test_alone(): pass",
        test_two=f"""
            import pytest, subprocess, sys

            @pytest.mark.parametrize("case", ["first", "second"])
            def test_cases(case): pass

            def test_slow():
                code = "import time\\nwhile time.process_time() < {SLOW_SECONDS + 0.1}: pass"
                subprocess.run([sys.executable, "-c", code], check=True)
        """,
    )
    options = ("-v", "-p", "no:asyncio")
    pytester.runpytest("--measure", "--numprocesses=1", *options).assert_outcomes(passed=4)
    table = json.loads((pytester.path / "tests" / "seconds.json").read_text())
    assert list(table) == ["test_one.py", "test_two.py"]
    assert table["test_two.py"].keys() == {"total", "test_slow"}
    assert table["test_two.py"]["total"] >= table["test_two.py"]["test_slow"] > SLOW_SECONDS
    everything = pytester.runpytest(*options)
    everything.assert_outcomes(passed=4)
    everything.stdout.fnmatch_lines(["*test_two.py*", "*test_one.py*"])
    fast = pytester.runpytest("--quick", *options)
    fast.assert_outcomes(passed=2, deselected=2)
    fast.stdout.fnmatch_lines(["*test_cases[[]first[]] PASSED*", "*test_alone PASSED*"])
