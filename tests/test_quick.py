"""The selection of `scripts/test --quick`: each test file is in it, with one case of each test."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
pytest_plugins = ("pytester",)


def marked_slow(path: Path) -> Iterator[tuple[str, bool]]:
    """The tests of a file, and whether each is marked slow."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith(
            "test"
        ):
            marks = {ast.unparse(decorator) for decorator in node.decorator_list}
            yield node.name, "pytest.mark.slow" in marks


def test_every_test_file_has_a_test_that_is_not_slow() -> None:
    files = {
        str(path.relative_to(TESTS)): dict(marked_slow(path)) for path in TESTS.rglob("test_*.py")
    }
    assert any(slow for tests in files.values() for slow in tests.values())
    assert [name for name, tests in files.items() if all(tests.values())] == []


def test_quick_runs_the_first_case_of_each_test_and_no_slow_test(pytester: pytest.Pytester) -> None:
    source = (TESTS / "conftest.py").read_text()
    hooks = [
        ast.unparse(node)
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("pytest_")
    ]
    pytester.makeini("[pytest]\nmarkers = slow: takes long")
    pytester.makeconftest(
        "\n".join(["import gc", "from collections import Counter", "import pytest", *hooks])
    )
    pytester.makepyfile(
        test_many="""
            import pytest

            @pytest.mark.parametrize("case", ["first", "second"])
            def test_cases(case): pass

            @pytest.mark.slow
            def test_slow(): pass
        """
    )
    pytester.makepyfile(test_one="def test_alone(): pass")
    quick = pytester.runpytest("--quick", "-v", "-p", "no:asyncio")
    quick.assert_outcomes(passed=2, deselected=2)
    quick.stdout.fnmatch_lines(["*test_cases[[]first[]] PASSED*", "*test_alone PASSED*"])
    everything = pytester.runpytest("-v", "-p", "no:asyncio")
    everything.assert_outcomes(passed=4)
    everything.stdout.fnmatch_lines(["*test_many.py*", "*test_one.py*"])
