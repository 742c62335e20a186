"""An option has one name, one default and one set of values on every surface."""

import inspect
from typing import Any, get_args, get_type_hints

import click
import pytest

from parakeet_worker.client.clients import AsyncClient, Client, Options
from parakeet_worker.entrypoints import cli
from parakeet_worker.formats import reformat
from parakeet_worker.model import Model
from parakeet_worker.options import CUE_LIMITS, CueLimitKeywords, CueLimits
from parakeet_worker.wire import native, openai
from parakeet_worker.wire.validation import choices

SHARED = ("attention", "audio_format", "channels", "language", "on_damage", "track", "vad")
# A clip is an object in JSON.
WIRE_NAMES = {"start_seconds": "clip", "end_seconds": "clip"}
# Samples in memory exist in Python only.
PYTHON_ONLY = {"sample_rate"}


def wire() -> dict[str, Any]:
    return dict(native._RequestWire.model_fields)


def python() -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(Model.transcribe).parameters
    return {name: each for name, each in parameters.items() if each.kind is each.KEYWORD_ONLY}


def client() -> dict[str, Any]:
    return get_type_hints(Options)


def command_line() -> dict[str, click.Option]:
    command = cli.main.commands["transcribe"]
    return {str(each.name): each for each in command.params if isinstance(each, click.Option)}


def test_every_surface_has_the_shared_options() -> None:
    for surface in (wire(), python(), client(), command_line()):
        assert set(SHARED) <= set(surface)


def test_options_of_python_and_of_clients_are_fields_of_a_request() -> None:
    for surface in (set(python()) - PYTHON_ONLY, set(client())):
        assert {WIRE_NAMES.get(name, name) for name in surface} <= set(wire())


def test_options_of_clients_that_the_command_line_has_are_named_alike() -> None:
    assert {"timestamp", *SHARED} <= set(client()) & set(command_line())


@pytest.mark.parametrize("limit", CUE_LIMITS)
def test_a_limit_of_subtitles_is_a_field_on_every_surface(limit: str) -> None:
    default = getattr(CueLimits(), limit)
    for fields in (native._RequestWire.model_fields, openai._Wire.model_fields):
        assert fields[limit].default == default
    assert reformat.Rewriting.model_fields[limit].default == default
    assert limit in client()
    assert limit in command_line()
    assert limit in get_type_hints(CueLimitKeywords)


@pytest.mark.parametrize("option", SHARED)
def test_a_shared_option_has_the_same_values_and_default(option: str) -> None:
    field = wire()[option]
    allowed = choices(field.annotation)
    assert choices(get_type_hints(Model.transcribe)[option]) == allowed
    assert choices(client()[option]) == allowed
    assert python()[option].default == field.default
    flag = command_line()[option]
    assert list(getattr(flag.type, "choices", [])) == allowed
    assert not isinstance(flag.default, str) or flag.default == field.default


def test_the_blocking_client_has_no_name_of_its_own() -> None:
    methods = [each for each in inspect.getmembers(Client, inspect.isfunction) if each[0][0] != "_"]
    assert methods
    for name, method in methods:
        asynchronous = inspect.signature(getattr(AsyncClient, name)).parameters
        assert set(inspect.signature(method).parameters) <= set(asynchronous), name


def test_formats_are_the_same() -> None:
    from parakeet_worker.options import Format

    assert choices(wire()["format"].annotation) == list(get_args(Format))
    assert choices(client()["format"]) == list(get_args(Format))
