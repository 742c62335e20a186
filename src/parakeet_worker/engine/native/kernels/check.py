"""Kernels held against their references on what a model computes, and replaced where they differ.

Each operation is computed twice, by the kernel on a copy of its arguments and by the reference,
whose result goes on: what follows a wrong kernel is compared all the same.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from math import inf
from typing import Any, TypeVar

import torch
from torch import Tensor

from parakeet_worker.engine.kernel_report import KernelReport
from parakeet_worker.engine.native.kernels.search_rows import SearchRows
from parakeet_worker.engine.native.rows import FACTOR, Group, Rows

Operations = TypeVar("Operations")
Outputs = Callable[[tuple[Any, ...], Any], Sequence[Tensor]]

_TOLERANCES = {torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float32: 2e-4}
"""Relative: a few roundings of the result's type; of float32, what approximate functions cost."""
_INTEGERS = 1e-2
"""The share that may differ: of two equal scores either may win."""
_REASON_CHARACTERS = 200


class Comparison:
    """Operations that compare a kernel with its reference whenever they are called."""

    def __init__(self, calls: int | None = None, failures: Mapping[str, str] | None = None) -> None:
        """Of each operation in each tile at most so many `calls` are compared, by default all.

        `failures` are reasons by name for what is known not to run, and is not tried.
        """
        self._calls = calls
        self._counts: dict[tuple[str, Any], int] = {}
        self._errors: dict[str, list[tuple[Tensor, float]]] = {}
        self._failures = dict(failures or {})
        self._called: dict[str, None] = {}

    def of(self, kernels: Operations, references: Operations, names: Sequence[str]) -> Operations:
        """`kernels` with the operations in `names` compared, and giving the references' results."""
        compared: dict[str, Any] = {
            name: self._compared(name, getattr(kernels, name), getattr(references, name))
            for name in names
        }
        return replace(kernels, **compared)  # type: ignore[type-var]

    def reports(self) -> tuple[KernelReport, ...]:
        """One for each operation that was called."""
        return tuple(self._report(name) for name in self._called)

    def _compared(
        self, name: str, kernel: Callable[..., Any], reference: Callable[..., Any]
    ) -> Callable[..., Any]:
        outputs = _OUTPUTS.get(name, _result)

        def both(*arguments: Any, **options: Any) -> Any:
            self._called[name] = None
            if name in self._failures or self._enough(name, options.get("tile")):
                return reference(*arguments, **options)
            copies = _copied(arguments)
            try:
                found = outputs(copies, kernel(*copies, **options))
            except Exception as failure:  # noqa: BLE001  # compilers and drivers raise anything
                self._failures[name] = f"{type(failure).__name__}: {failure}"[:_REASON_CHARACTERS]
                return reference(*arguments, **options)
            result = reference(*arguments, **options)
            expected = outputs(arguments, result)
            errors = self._errors.setdefault(name, [])
            errors += [_error(*pair) for pair in zip(found, expected, strict=True)]
            return result

        return both

    def _enough(self, name: str, tile: Any) -> bool:
        count = self._counts[name, tile] = self._counts.get((name, tile), 0) + 1
        return self._calls is not None and count > self._calls

    def _report(self, name: str) -> KernelReport:
        """By the worst of all calls, each measured in its own tolerance."""
        if name in self._failures:
            return KernelReport(name, inf, 0.0, self._failures[name])
        errors, tolerances = zip(*self._errors[name], strict=True)
        found = torch.stack(errors).tolist()
        _, error, tolerance = max(
            (error / tolerance, error, tolerance)
            for error, tolerance in zip(found, tolerances, strict=True)
        )
        return KernelReport(name, error, tolerance)


def replaced(
    kernels: Operations, references: Operations, reports: Sequence[KernelReport]
) -> Operations:
    """`kernels` with the reference of each in whose report it is replaced."""
    own = {field.name for field in fields(kernels)}  # type: ignore[arg-type]
    wrong = [report.name for report in reports if report.replaced and report.name in own]
    return replace(kernels, **{name: getattr(references, name) for name in wrong})  # type: ignore[type-var]


def _error(found: Tensor, expected: Tensor) -> tuple[Tensor, float]:
    """Of the worst row, against the larger of its norm and that of a usual row; its tolerance.

    Of integers, the share that differ.
    """
    if found.dtype != expected.dtype or found.shape != expected.shape:
        return torch.tensor(inf, device=expected.device), 1.0
    if not expected.numel():
        return torch.zeros((), device=expected.device), 1.0
    same = found == expected
    if not expected.is_floating_point():
        return (~same).float().mean(), _INTEGERS
    rows = expected.float().reshape(len(expected), -1)
    difference = (found.float() - expected.float()).reshape(rows.shape)
    # Infinities may be equal, and their difference is no number.
    difference = torch.where(same.reshape(rows.shape), 0.0, difference).nan_to_num(nan=inf)
    norms = rows.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).norm(dim=1)
    usual = norms.square().mean().sqrt().clamp(min=1e-6)
    worst = (difference.norm(dim=1) / torch.maximum(norms, usual)).amax()
    return worst, _TOLERANCES[expected.dtype]


def _copied(value: Any) -> Any:
    """The same structure with tensors on their own memory."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, tuple):
        return tuple(_copied(each) for each in value)
    if is_dataclass(value) and not isinstance(value, type):
        # By position, since frozen classes with slots have no other way in.
        return type(value)(*(_copied(getattr(value, field.name)) for field in fields(value)))
    return value


def _result(_: tuple[Any, ...], result: Any) -> Sequence[Tensor]:
    return [result]


def _states_too(arguments: tuple[Any, ...], result: Any) -> Sequence[Tensor]:
    return [result, arguments[0]]


def _places_of_rows(arguments: tuple[Any, ...], result: Any) -> Sequence[Tensor]:
    """Without the places of a token that has fewer frames than others: they mean nothing."""
    _, _, _, rows, group = arguments
    assert isinstance(rows, Rows)
    assert isinstance(group, Group)
    places = FACTOR // 4
    row = rows.row_of[group.first : group.first + group.tokens].repeat_interleave(places)
    place = group.first * places + torch.arange(len(row), device=row.device)
    known = row.clamp(min=0)
    had = (rows.frames[known] + 3) // 4
    valid = (row >= 0) & (place - places * rows.offsets[known] < had)
    return [result[valid]]


def _lstm_state(arguments: tuple[Any, ...], _: Any) -> Sequence[Tensor]:
    *_, cell, advanced = arguments
    return [cell, advanced]


def _joined(arguments: tuple[Any, ...], _: Any) -> Sequence[Tensor]:
    rows, *_, joined = arguments
    return [joined[_active(rows)]]


def _partials(arguments: tuple[Any, ...], _: Any) -> Sequence[Tensor]:
    rows, *_, partials = arguments
    active = _active(rows)
    scores = (partials.maximum, partials.total, partials.best, partials.raw)
    return [*(each[:-1, active] for each in scores), partials.indices[:, active]]


def _active(rows: SearchRows) -> Tensor:
    return rows.frames < rows.lengths


def _step(arguments: tuple[Any, ...], _: Any) -> Sequence[Tensor]:
    rows, _, _, record, running = arguments
    lines = record[:-1]
    moved = [getattr(rows, field.name) for field in fields(rows) if field.name != "tokens"]
    # A token matters where it was emitted.
    said = torch.where(rows.emitted != 0, rows.tokens, 0)
    return [*moved, said, lines[:, :3], lines[:, 3].view(torch.float32), running]


_OUTPUTS: Mapping[str, Outputs] = {
    "residual_norm": _states_too,
    "subsampling_first": _places_of_rows,
    "lstm": _lstm_state,
    "joint_hidden": _joined,
    "joint_scores": _partials,
    "search_step": _step,
}
"""What a call gave that has a meaning, from its arguments and its result."""
