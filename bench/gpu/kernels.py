"""Part `kernels`: each kernel of the encoder beside its reference, on the device.

The whole chain runs on noise and speech of mixed lengths. At every call the kernel and its
reference are given the same tensors; the kernel's result is what the chain continues with.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.gpu import sounds
from bench.gpu.comparing import roundings
from bench.gpu.figures import Report
from bench.gpu.opening import Loaded, loaded, random_nemo
from bench.gpu.parts import Setup
from bench.gpu.sounds import Pcm
from parakeet_worker.engine.native.encoder import EncoderShape
from parakeet_worker.engine.native.engine import NativeEngine
from parakeet_worker.engine.native.kernels.kernel_set import MODULES, OPERATIONS, Kernels
from parakeet_worker.engine.native.packed_encoder import PackedEncoder
from parakeet_worker.engine.native.packed_features import PackedFeatures
from parakeet_worker.engine.native.rows import Plan, Rows, rows_of
from parakeet_worker.engine.native.tensors import below

PRECISIONS = ("bf16", "fp16")
"""Those that the kernels serve in."""

_LIMIT = 16.0
"""Roundings of the largest value: a kernel with an error in it is off by dozens."""

_HOP = 160
_LAYOUTS: tuple[tuple[int, ...], ...] = (
    (1,),
    (_HOP,),
    (8 * _HOP,),
    (0, 1279, 0, 16_000, 1),
    (30 * 16_000,),
    (3 * 16_000, 11_111, 8 * 16_000 + 1, _HOP - 1, 128_000, 5 * 16_000 - 1, 20_480),
)
"""Samples of each row: less than a frame, one frame, one token, empty rows, one row, mixed."""


class Compared:
    """Stands for a set of kernels and keeps the largest error of each."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels
        self.errors = dict.fromkeys(OPERATIONS, 0.0)

    def kernels(self) -> Kernels:
        """The same operations, each compared with its reference at every call."""
        beside: dict[str, Any] = {
            name: self._compared(name, getattr(self._kernels, name)) for name in OPERATIONS
        }
        return replace(self._kernels, **beside)

    def _compared(self, name: str, kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
        reference = MODULES[name].reference

        def call(states: Tensor, *others: Any, **named: Any) -> Tensor:
            # The first argument is the only one that an operation may write to.
            apart = states.clone()
            expected = reference(apart, *others, **named)
            found = kernel(states, *others, **named)
            error = max(roundings(found, expected), roundings(states, apart))
            self.errors[name] = max(self.errors[name], error)
            return found

        return call


def run(setup: Setup, report: Report) -> None:
    """Every kernel in every precision that is served, with cuBLAS's products and with ours."""
    for precision in PRECISIONS:
        for reproducible in (False, True):
            model = loaded(setup, random_nemo(setup), precision, reproducible=reproducible)
            errors = largest_errors(model, small=setup.small)
            # The rest is the same in both, except that the features' products are ours too.
            names = ["product"] if reproducible else list(OPERATIONS)
            kind = ", reproducible" if reproducible else ""
            for name in names:
                report.check(
                    f"{name}, {precision}{kind}", errors[name], "roundings", at_most=_LIMIT
                )


@torch.inference_mode()
def largest_errors(model: Loaded, *, small: bool = False) -> dict[str, float]:
    """Of each kernel over all layouts; `small` leaves out the two that take long on a CPU."""
    compared = Compared(model.kernels)
    features, encoder = chain(model, compared.kernels())
    for lengths in _LAYOUTS[:4] if small else _LAYOUTS:
        samples, rows = laid_out(chunks_of(lengths), model.device)
        encoder(features(samples, rows), rows)
    return compared.errors


def chain(model: Loaded, kernels: Kernels) -> tuple[PackedFeatures, PackedEncoder]:
    """The packed chain of a model on these kernels."""
    plain = NativeEngine(model.model, model.device)
    return (
        PackedFeatures.of(plain.features, kernels, model.model.precision.dtype),
        PackedEncoder(
            below("encoder", model.model.tensors), EncoderShape.read(model.model.encoder), kernels
        ),
    )


def chunks_of(lengths: tuple[int, ...]) -> list[Pcm]:
    """Speech of these lengths in samples, and a little noise, so that no frame is silent."""
    chance = np.random.default_rng(len(lengths))
    speech = np.resize(sounds.speech(), sum(lengths))
    noisy = (speech * 0.8 + chance.normal(0, 30, len(speech))).astype(np.int16)
    return np.split(noisy, np.cumsum(lengths)[:-1])


def laid_out(chunks: list[Pcm], device: torch.device) -> tuple[Tensor, Rows]:
    """Packed int16 samples and their rows."""
    plan = Plan(tuple(len(chunk) for chunk in chunks), _HOP)
    samples = torch.from_numpy(np.concatenate(chunks)).to(device)
    return samples, rows_of(plan, [1 / 32768] * len(chunks), device)
