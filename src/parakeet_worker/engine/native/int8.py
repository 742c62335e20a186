"""int8 matrix products on a CPU, by oneDNN: 8-bit operands, 32-bit sums.

Inputs are quantised per call, by their range; weights once, with one scale per output. CPUs with
VNNI sum exactly. Others add pairs of products in 16 bits, which saturates unless one operand has
fewer bits; there the weights are narrowed, which loses less than a bit of the inputs would.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from parakeet_worker.engine.native import torch_int8
from parakeet_worker.engine.native.torch_int8 import LayoutFunctions

_MAX_INPUT = 255
# Weights are at most 127. Times this and divided by 256 they are at most 64, so that the sum of two
# products stays below 2^15; and no weight is rounded from halfway between two integers.
_NARROWING = 129

# Side of the blocks in which oneDNN's kernels for AVX-512 and AVX-VNNI read a matrix.
_BLOCK = 64


def blocked(weight: Tensor) -> Tensor:
    """(outputs, inputs) in the memory layout of oneDNN; unchanged unless made of whole blocks.

    A block has 64 outputs and 64 inputs, four inputs of one output next to each other. The blocks
    are followed by the negated sum of each output's weights in 32 bits, which oneDNN uses to
    subtract the zero point of the inputs.
    """
    outputs, inputs = weight.shape
    if outputs % _BLOCK or inputs % _BLOCK:
        return weight
    fours = weight.view(torch.int32).view(outputs // _BLOCK, _BLOCK, inputs // _BLOCK, -1)
    sums = weight.sum(dim=1, dtype=torch.int32).neg_()
    return torch.cat((fours.permute(0, 2, 3, 1).flatten(), sums)).view(torch.int8)


def _shape(matrix: Tensor, outputs: int) -> torch.Size:
    """(outputs, inputs) of a `blocked` or plain matrix."""
    return matrix.shape if matrix.dim() == 2 else torch.Size((outputs, len(matrix) // outputs - 4))


def plain(matrix: Tensor, outputs: int) -> Tensor:
    """(outputs, inputs) weights of a `blocked` or plain matrix."""
    if matrix.dim() == 2:
        return matrix
    fours = matrix[: -4 * outputs].view(torch.int32).view(outputs // _BLOCK, -1, 16, _BLOCK)
    return fours.permute(0, 3, 1, 2).contiguous().view(torch.int8).view(outputs, -1)


@dataclass(frozen=True, slots=True, eq=False)
class _Prepacked:
    """A matrix in the layout of oneDNN."""

    tensor: Tensor
    memory: Tensor | None = None
    """Owns the memory of `tensor`, unless `tensor` does."""


@dataclass(frozen=True, slots=True)
class Prepacker:
    """Brings matrices into the layout of oneDNN.

    oneDNN reorders byte by byte, which takes 2 s for a large model. It therefore reorders the first
    matrix of each shape; if the result equals `blocked`, further matrices of that shape are used
    in place.
    """

    functions: LayoutFunctions | None
    """None: oneDNN reorders every matrix."""
    descriptors: dict[torch.Size, Tensor | None] = field(default_factory=dict)
    """By shape, oneDNN's description of the `blocked` layout; None if it uses another one."""

    def prepack(self, matrix: Tensor, outputs: int) -> _Prepacked:
        shape = _shape(matrix, outputs)
        descriptor = self.descriptors.get(shape)
        if self.functions is None or (shape in self.descriptors and descriptor is None):
            return _Prepacked(torch_int8.load().prepack(plain(matrix, outputs), None))
        memory = blocked(matrix) if matrix.dim() == 2 else matrix
        if descriptor is not None:
            return _Prepacked(self.functions.wrap(memory, shape, descriptor), memory)
        reordered = torch_int8.load().prepack(plain(matrix, outputs), None)
        self.descriptors[shape] = _descriptor(memory, reordered, self.functions)
        return _Prepacked(reordered)


def _descriptor(matrix: Tensor, reordered: Tensor, functions: LayoutFunctions) -> Tensor | None:
    """The layout of `reordered` if its bytes equal those of the `blocked` matrix."""
    if matrix.dim() == 2 or not torch.equal(functions.memory(reordered), matrix):
        return None
    return functions.descriptor(reordered)


@cache
def default_prepacker() -> Prepacker:
    """The process-wide prepacker."""
    return Prepacker(torch_int8.load_layout())


def linear(
    matrix: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    *,
    prepacker: Prepacker | None = None,
    narrow: bool | None = None,
) -> Callable[[Tensor], Tensor]:
    """Return the function `x -> x @ (weight * scales).T + bias` on float32 `x`.

    `matrix` is the weight, (outputs, inputs) in -127 to 127, or `blocked`; `scales` has one
    float32 per output. `narrow` restricts weights to 7 bits; by default if this CPU `saturates`.
    """
    if saturates() if narrow is None else narrow:
        matrix, scales = narrowed(plain(matrix, len(scales)), scales)
    prepacked = (prepacker or default_prepacker()).prepack(matrix, len(scales))
    zeros = torch.zeros(len(scales), dtype=torch.int32)

    def product(states: Tensor) -> Tensor:
        scale, zero = _range(states)
        if not math.isfinite(scale):
            return states.new_full((*states.shape[:-1], len(scales)), math.nan)
        operands = (_quantised(states, scale, zero), scale, zero, prepacked.tensor, scales, zeros)
        return _multiply(*operands, bias)

    return product


def _multiply(*operands: Tensor | float | None) -> Tensor:
    return torch_int8.load().linear(*operands, 1.0, 0, torch.float32, "none", [], "")


def _range(states: Tensor) -> tuple[float, int]:
    """Scale and zero point that map the range of `states` to 8 bits; 0.0 stays exact."""
    low, high = (float(bound) for bound in torch.aminmax(states))
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / _MAX_INPUT, 1e-30)
    return scale, round(-low / scale) if math.isfinite(scale) else 0


def _quantised(states: Tensor, scale: float, zero: int) -> Tensor:
    """uint8 view of torch's quantised tensor, whose `int_repr` is a slow copy."""
    quantised = torch.quantize_per_tensor(states, scale, zero, torch.quint8)
    view = torch.empty(0, dtype=torch.uint8)
    return view.set_(quantised.untyped_storage(), 0, quantised.shape, quantised.stride())


def narrowed(weight: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """The matrix with weights of at most 64, which never saturate with 8-bit inputs."""
    wide = weight.short().mul_(_NARROWING).add_(128)
    return wide.bitwise_right_shift_(8).to(torch.int8), scales * (256 / _NARROWING)


@cache
def saturates() -> bool:
    """Whether products lose bits beyond 16 on this CPU.

    Measured, because the instructions that a CPU has are not always those that oneDNN uses.
    """
    inputs = 2 * _BLOCK
    weight = torch.full((_BLOCK, inputs), 127, dtype=torch.int8)
    weight[1::2] = -127
    exact = weight.sum(dim=1).float() * _MAX_INPUT
    packed = torch_int8.load().prepack(weight, None)
    ones, zeros = torch.ones(_BLOCK), torch.zeros(_BLOCK, dtype=torch.int32)
    for rows in (1, _BLOCK):
        states = torch.full((rows, inputs), _MAX_INPUT, dtype=torch.uint8)
        product = _multiply(states, 1.0, 0, packed, ones, zeros, None)
        if not torch.equal(product, exact.expand(rows, _BLOCK)):
            return True
    return False
