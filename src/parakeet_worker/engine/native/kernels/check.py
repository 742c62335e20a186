"""Compares kernels with their references on a model's own data, and replaces those that differ.

Each operation runs twice: the kernel on a copy of its arguments, then the reference, whose result
is passed on. Operations that follow an incorrect kernel are therefore compared correctly as well.
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
"""Relative: a few roundings in the output dtype; in float32 the error of approximate functions."""
_INTEGER_TOLERANCE = 1e-2
"""Fraction of integers that may differ: ties between equal scores may be broken either way."""
_MAX_REASON_CHARACTERS = 200


class Comparison:
    """Wraps operations so that each call compares the kernel with its reference."""

    def __init__(
        self, max_calls: int | None = None, failures: Mapping[str, str] | None = None
    ) -> None:
        """Compare at most `max_calls` calls of each operation and tile, by default all.

        `failures` maps the names of operations that failed to compile to reasons; they are not
        run.
        """
        self._max_calls = max_calls
        self._counts: dict[tuple[str, Any], int] = {}
        self._errors: dict[str, list[tuple[Tensor, float]]] = {}
        self._failures = dict(failures or {})
        self._called: dict[str, None] = {}

    def wrap(self, kernels: Operations, references: Operations, names: Sequence[str]) -> Operations:
        """`kernels` with the operations in `names` compared; they return the reference's result."""
        compared: dict[str, Any] = {
            name: self._compared(name, getattr(kernels, name), getattr(references, name))
            for name in names
        }
        return replace(kernels, **compared)  # type: ignore[type-var]

    def reports(self) -> tuple[KernelReport, ...]:
        """One report for each operation that was called."""
        return tuple(self._report(name) for name in self._called)

    def _compared(
        self, name: str, kernel: Callable[..., Any], reference: Callable[..., Any]
    ) -> Callable[..., Any]:
        outputs = _OUTPUTS.get(name, _result)

        def run_both(*arguments: Any, **options: Any) -> Any:
            self._called[name] = None
            if name in self._failures or self._limit_reached(name, options.get("tile")):
                return reference(*arguments, **options)
            copies = _clone(arguments)
            try:
                actual = outputs(copies, kernel(*copies, **options))
            except Exception as failure:  # noqa: BLE001  # compilers and drivers raise anything
                reason = f"{type(failure).__name__}: {failure}"
                self._failures[name] = reason[:_MAX_REASON_CHARACTERS]
                return reference(*arguments, **options)
            result = reference(*arguments, **options)
            expected = outputs(arguments, result)
            errors = self._errors.setdefault(name, [])
            errors += [_error(*pair) for pair in zip(actual, expected, strict=True)]
            return result

        return run_both

    def _limit_reached(self, name: str, tile: Any) -> bool:
        count = self._counts[name, tile] = self._counts.get((name, tile), 0) + 1
        return self._max_calls is not None and count > self._max_calls

    def _report(self, name: str) -> KernelReport:
        """Report the call with the largest error relative to its tolerance."""
        if name in self._failures:
            return KernelReport(name, inf, 0.0, self._failures[name])
        errors, tolerances = zip(*self._errors[name], strict=True)
        _, error, tolerance = max(
            (error / tolerance, error, tolerance)
            for error, tolerance in zip(torch.stack(errors).tolist(), tolerances, strict=True)
        )
        return KernelReport(name, error, tolerance)


def with_fallbacks(
    kernels: Operations, references: Operations, reports: Sequence[KernelReport]
) -> Operations:
    """`kernels` with the reference for each operation whose report is `replaced`."""
    names = {field.name for field in fields(kernels)}  # type: ignore[arg-type]
    incorrect = [report.name for report in reports if report.replaced and report.name in names]
    return replace(kernels, **{name: getattr(references, name) for name in incorrect})  # type: ignore[type-var]


def _error(actual: Tensor, expected: Tensor) -> tuple[Tensor, float]:
    """Error of the worst row relative to max(its norm, the RMS norm of all rows); its tolerance.

    For integers, the fraction that differs.
    """
    if actual.dtype != expected.dtype or actual.shape != expected.shape:
        return torch.tensor(inf, device=expected.device), 1.0
    if not expected.numel():
        return torch.zeros((), device=expected.device), 1.0
    equal = actual == expected
    if not expected.is_floating_point():
        return (~equal).float().mean(), _INTEGER_TOLERANCE
    rows = expected.float().reshape(len(expected), -1)
    difference = (actual.float() - expected.float()).reshape(rows.shape)
    # The difference of two equal infinities is NaN.
    difference = torch.where(equal.reshape(rows.shape), 0.0, difference).nan_to_num(nan=inf)
    norms = rows.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).norm(dim=1)
    typical_norm = norms.square().mean().sqrt().clamp(min=1e-6)
    worst = (difference.norm(dim=1) / torch.maximum(norms, typical_norm)).amax()
    return worst, _TOLERANCES[expected.dtype]


def _clone(value: Any) -> Any:
    """Copy nested tuples and dataclasses with every tensor cloned."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, tuple):
        return tuple(_clone(item) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        # Positional arguments: the fields of a frozen dataclass cannot be assigned.
        return type(value)(*(_clone(getattr(value, field.name)) for field in fields(value)))
    return value


def _result(_: tuple[Any, ...], result: Any) -> Sequence[Tensor]:
    return [result]


def _result_and_states(arguments: tuple[Any, ...], result: Any) -> Sequence[Tensor]:
    return [result, arguments[0]]


def _valid_steps(arguments: tuple[Any, ...], result: Any) -> Sequence[Tensor]:
    """Only the time steps that a row covers: a last token may have fewer, the rest is undefined."""
    _, _, _, rows, group = arguments
    assert isinstance(rows, Rows)
    assert isinstance(group, Group)
    steps_per_token = FACTOR // 4
    row = rows.row_of[group.first : group.first + group.tokens].repeat_interleave(steps_per_token)
    step = group.first * steps_per_token + torch.arange(len(row), device=row.device)
    row_index = row.clamp(min=0)
    steps = (rows.frames[row_index] + 3) // 4
    valid = (row >= 0) & (step - steps_per_token * rows.offsets[row_index] < steps)
    return [result[valid]]


def _lstm_state(arguments: tuple[Any, ...], _: Any) -> Sequence[Tensor]:
    *_, cell, next_hidden = arguments
    return [cell, next_hidden]


def _joint_output(arguments: tuple[Any, ...], _: Any) -> Sequence[Tensor]:
    rows, *_, output = arguments
    return [output[_active(rows)]]


def _partials(arguments: tuple[Any, ...], _: Any) -> Sequence[Tensor]:
    rows, *_, partials = arguments
    active = _active(rows)
    values = (partials.maximum, partials.exp_sum, partials.best_score, partials.best_logit)
    return [*(value[:-1, active] for value in values), partials.best_index[:, active]]


def _active(rows: SearchRows) -> Tensor:
    return rows.frames < rows.lengths


def _step_outputs(arguments: tuple[Any, ...], _: Any) -> Sequence[Tensor]:
    rows, _, _, record, remaining = arguments
    lines = record[:-1]  # the last line is the overflow slot
    state = [getattr(rows, field.name) for field in fields(rows) if field.name != "tokens"]
    # The token of a row that did not emit is undefined.
    tokens = torch.where(rows.emitted != 0, rows.tokens, 0)
    return [*state, tokens, lines[:, :3], lines[:, 3].view(torch.float32), remaining]


_OUTPUTS: Mapping[str, Outputs] = {
    "residual_norm": _result_and_states,
    "subsampling_first": _valid_steps,
    "lstm": _lstm_state,
    "joint_hidden": _joint_output,
    "joint_scores": _partials,
    "search_step": _step_outputs,
}
"""Defined outputs of a call, from its arguments and its result."""
