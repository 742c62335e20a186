"""Generates docs/configuration.md, docs/errors.md and docs/cli.md from the code."""

import inspect
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import click

from parakeet_worker import errors
from parakeet_worker.bootstrap.choices import VARIABLES
from parakeet_worker.entrypoints import cli
from parakeet_worker.errors import ParakeetError
from parakeet_worker.settings import Settings, variable

DOCS = Path(__file__).resolve().parent.parent / "docs"
_GENERATED = "<!-- Written by scripts/docs; edit the code instead. -->\n\n"


def main() -> None:
    for name, page in pages().items():
        (DOCS / name).write_text(page)


def pages() -> dict[str, str]:
    """File name to content of every generated page."""
    return {
        "configuration.md": _GENERATED + _configuration(),
        "errors.md": _GENERATED + _errors(),
        "cli.md": _GENERATED + _cli(),
    }


def _configuration() -> str:
    rows = [
        f"| `{variable(name)}` | {_kind(field.annotation)} | {_default(name)} "
        f"| {' '.join((field.description or '').split())} |"
        for name, field in Settings.model_fields.items()
    ]
    return (
        "# Configuration\n\n"
        "Every choice is an environment variable, read once at the start.\n"
        "An unknown `PARAKEET_*` name stops the worker and names the nearest right one.\n\n"
        "| variable | type | default | meaning |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
        "\n## What is installed where\n\n"
        "Read by `handler.py`, where the worker is not installed beside it.\n\n"
        "| variable | type | default | meaning |\n|---|---|---|---|\n"
        + "\n".join(
            f"| `{each.name}` | {each.kind} | {f'`{each.default}`' if each.default else 'none'} "
            f"| {each.meaning} |"
            for each in VARIABLES
        )
        + "\n"
    )


def _kind(annotation: Any) -> str:
    if get_origin(annotation) is Annotated:
        return _kind(get_args(annotation)[0])
    if get_origin(annotation) in (types.UnionType, Union):
        return _kind(next(kind for kind in get_args(annotation) if kind is not type(None)))
    choices = get_args(annotation)
    if choices:
        return " or ".join(f"`{choice}`" for choice in choices)
    names = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    return names.get(annotation, "path")


def _default(name: str) -> str:
    if name == "scratch":
        return "the system's temporary folder"
    default = Settings.model_fields[name].default
    if default is None:
        return "none"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`".replace("`F", "`f")


_MOVES = {
    "RequestError": "The caller must change the request.",
    "TransientError": "The same request may work later.",
    "EngineError": "This worker is at fault.",
    "SetupError": "The operator must change the deployment; no job is taken.",
}


def _errors() -> str:
    parts = [
        "# Errors\n\n"
        "An answer with `error` is a failure: `error` is one string with a stable code in front,\n"
        "`code` is that code alone, and the facts stand beside it.\n"
        "The shape is the same for a whole job and for one entry of an `inputs` list.\n"
    ]
    for family, move in _MOVES.items():
        rows = [
            f"| `{kind.code}` | {meaning} | {kind.http_status} |"
            for kind, meaning in _leaves(getattr(errors, family))
        ]
        parts.append(
            f"\n## {family}\n\n{move}\n\n| code | meaning | HTTP |\n|---|---|---|\n"
            + "\n".join(rows)
            + "\n"
        )
    return "".join(parts)


def _leaves(family: type[ParakeetError]) -> Iterator[tuple[type[ParakeetError], str]]:
    """The errors of a family with their meaning, both in the order of the drawing."""
    drawing = inspect.getdoc(errors) or ""
    kinds = {kind.__name__: kind for kind in family.__subclasses__()}
    for line in drawing.splitlines():
        name, _, meaning = line.strip("│├└─ ").partition(" ")
        if name in kinds:
            yield kinds[name], meaning.strip()


def _cli() -> str:
    parts = ["# Command line\n"]
    context = click.Context(cli.main, info_name="parakeet", **cli.CONTEXT)
    for name in [None, *sorted(cli.main.commands)]:
        command: click.Command = cli.main if name is None else cli.main.commands[name]
        at = (
            context
            if name is None
            else click.Context(command, info_name=name, parent=context, **cli.CONTEXT)
        )
        title = "parakeet" if name is None else f"parakeet {name}"
        parts.append(f"\n## {title}\n\n```text\n{command.get_help(at)}\n```\n")
    return "".join(parts)


if __name__ == "__main__":
    main()
