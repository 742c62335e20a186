"""Runs calls of a client: reads them as JSON from standard input, writes what each returned."""

import asyncio
import inspect
import json
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib.metadata import version
from typing import Any


def serve(package: str, call: Callable[..., Any], parameters: list[str]) -> None:
    """Answer each call with its result or its exception; all calls run one after the other."""
    calls = json.load(sys.stdin)
    with redirect_stdout(sys.stderr):
        outcomes = asyncio.run(_outcomes(call, calls))
    json.dump(
        {"version": version(package), "parameters": parameters, "outcomes": outcomes},
        sys.stdout,
    )


def parameters(function: Callable[..., Any], *excluded: str) -> list[str]:
    """The names of a function's parameters that a caller may set."""
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in ("self", *excluded) and parameter.kind not in kinds
    ]


async def _outcomes(call: Callable[..., Any], calls: list[dict[str, Any]]) -> list[Any]:
    return [await _outcome(call, each) for each in calls]


async def _outcome(call: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        result = call(**arguments)
        return {"result": await result if inspect.isawaitable(result) else result}
    except Exception as error:  # noqa: BLE001  # reported to the test
        return {"error": f"{type(error).__name__}: {error} {error.__cause__ or ''}"}
