"""The int8 product of a processor, by oneDNN: 8 bits times 8 bits, added up in 32.

Inputs are quantised at every call, by their range; weights once, with a scale per output.
Processors with VNNI add up exactly. Others add two products in 16 bits and saturate, unless one
side has a bit less; there it is the weights, which loses less than a bit of the inputs would.
"""

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

_GREATEST_INPUT = 255
# Weights are kept up to 127. Times this and divided by 256 they are up to 64, so that two products
# stay below 2^15; and none of them falls in the middle between two integers.
_NARROWING = 129

# The sides of the blocks in which oneDNN's kernels for AVX-512 and AVX-VNNI read a matrix.
_BLOCK = 64

# Names that torch has for its own compilers, and no others for this; its version is pinned.
_onednn, _mkldnn = torch.ops.onednn, torch.ops.mkldnn
_MKLDNN_LAYOUT = 3  # c10::Layout::Mkldnn


def blocked(weight: Tensor) -> Tensor:
    """(outputs, inputs) to the bytes that oneDNN's kernels read; a part of a block stays plain.

    Blocks are 64 outputs by 64 inputs, with four inputs of one output beside each other. Behind
    them come minus the sums of each output's weights, in 32 bits, which take the inputs' zero
    point out of the product.
    """
    outputs, inputs = weight.shape
    if outputs % _BLOCK or inputs % _BLOCK:
        return weight
    fours = weight.view(torch.int32).view(outputs // _BLOCK, _BLOCK, inputs // _BLOCK, -1)
    sums = weight.sum(dim=1, dtype=torch.int32).neg_()
    return torch.cat((fours.permute(0, 2, 3, 1).flatten(), sums)).view(torch.int8)


def _shape(matrix: Tensor, outputs: int) -> torch.Size:
    """(outputs, inputs) of what may be `blocked`."""
    return matrix.shape if matrix.dim() == 2 else torch.Size((outputs, len(matrix) // outputs - 4))


def plain(matrix: Tensor, outputs: int) -> Tensor:
    """(outputs, inputs) weights of what may be `blocked`."""
    if matrix.dim() == 2:
        return matrix
    fours = matrix[: -4 * outputs].view(torch.int32).view(outputs // _BLOCK, -1, 16, _BLOCK)
    return fours.permute(0, 3, 1, 2).contiguous().view(torch.int8).view(outputs, -1)


def linear(matrix: Tensor, scales: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """The function `x -> x @ (weight * scales).T + bias` on float32 `x`.

    `matrix` is the weight, (outputs, inputs) in -127 to 127, or `blocked`; `scales` has one
    float32 per output.
    """
    if saturates():
        matrix, scales = narrowed(plain(matrix, len(scales)), scales)
    laid_out = _layouts.laid_out(matrix, len(scales))
    zeros = torch.zeros(len(scales), dtype=torch.int32)

    def product(states: Tensor) -> Tensor:
        scale, zero = _range(states)
        if not math.isfinite(scale):
            return states.new_full((*states.shape[:-1], len(scales)), math.nan)
        given = (_quantised(states, scale, zero), scale, zero, laid_out.tensor, scales, zeros, bias)
        found: Tensor = _onednn.qlinear_pointwise(*given, 1.0, 0, torch.float32, "none", [], "")
        return found

    return product


def _range(states: Tensor) -> tuple[float, int]:
    """The scale and the zero point with which `states` fill 8 bits; zero itself stays exact."""
    low, high = (float(bound) for bound in torch.aminmax(states))
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / _GREATEST_INPUT, 1e-30)
    return scale, round(-low / scale) if math.isfinite(scale) else 0


def _quantised(states: Tensor, scale: float, zero: int) -> Tensor:
    """As bytes on the memory of torch's quantised tensor, whose `int_repr` is a slow copy."""
    found = torch.quantize_per_tensor(states, scale, zero, torch.quint8)
    plain = torch.empty(0, dtype=torch.uint8)
    return plain.set_(found.untyped_storage(), 0, found.shape, found.stride())


def narrowed(weight: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """The same matrix with weights of at most 64: with 8 bits of input it never saturates."""
    wide = weight.short().mul_(_NARROWING).add_(128)
    return wide.bitwise_right_shift_(8).to(torch.int8), scales * (256 / _NARROWING)


@cache
def saturates() -> bool:
    """Whether products lose here what does not fit in 16 bits.

    Some are computed to find out: what a processor offers is not always what a library uses.
    """
    inputs = 2 * _BLOCK
    weight = torch.full((_BLOCK, inputs), 127, dtype=torch.int8)
    weight[1::2] = -127
    exact = weight.sum(dim=1).float() * _GREATEST_INPUT
    packed = _onednn.qlinear_prepack(weight, None)
    ones, zeros = torch.ones(_BLOCK), torch.zeros(_BLOCK, dtype=torch.int32)
    for rows in (1, _BLOCK):
        states = torch.full((rows, inputs), _GREATEST_INPUT, dtype=torch.uint8)
        given = (states, 1.0, 0, packed, ones, zeros, None)
        found = _onednn.qlinear_pointwise(*given, 1.0, 0, torch.float32, "none", [], "")
        if not torch.equal(found, exact.expand(rows, _BLOCK)):
            return True
    return False


@dataclass(frozen=True, slots=True, eq=False)
class _Matrix:
    """A matrix as oneDNN's kernels read it."""

    tensor: Tensor
    memory: Tensor | None = None
    """What `tensor` lies on, where that is not its own."""


@dataclass(frozen=True, slots=True)
class _Layouts:
    """Brings matrices into the layout that oneDNN wants them in.

    oneDNN itself does that byte by byte, 2 s for a large model. So it does it once for each shape;
    where its bytes are those of `blocked`, other matrices of that shape are used as they are.
    """

    descriptions: dict[torch.Size, Tensor | None] = field(default_factory=dict)
    """By shape, oneDNN's own description of its layout; none where that is an unknown one."""

    def laid_out(self, matrix: Tensor, outputs: int) -> _Matrix:
        shape = _shape(matrix, outputs)
        description = self.descriptions.get(shape)
        if shape in self.descriptions and description is None:
            return _Matrix(_onednn.qlinear_prepack(plain(matrix, outputs), None))
        memory = blocked(matrix) if matrix.dim() == 2 else matrix
        if description is not None:
            return _Matrix(_described(memory, shape, description), memory)
        theirs = _onednn.qlinear_prepack(plain(matrix, outputs), None)
        self.descriptions[shape] = _description(memory, theirs)
        return _Matrix(theirs)


_layouts = _Layouts()


def _description(matrix: Tensor, theirs: Tensor) -> Tensor | None:
    """Of a matrix that oneDNN has laid out as `blocked` does."""
    if matrix.dim() == 2 or _tensor_maker() is None:
        return None
    length, place = _mkldnn._nbytes(theirs), _mkldnn.data_ptr(theirs)  # noqa: SLF001
    laid_out = torch.frombuffer((ctypes.c_int8 * length).from_address(place), dtype=torch.int8)
    if not torch.equal(laid_out, matrix):
        return None
    description: Tensor = _mkldnn._get_mkldnn_serialized_md(theirs)  # noqa: SLF001
    return description


@cache
def _tensor_maker() -> Callable[..., int] | None:
    """torch's function for a tensor on memory that somebody else has filled."""
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        maker = library.aoti_torch_create_tensor_from_blob_v2
    except (OSError, AttributeError):
        return None
    return cast("Callable[..., int]", maker)


def _described(memory: Tensor, shape: torch.Size, description: Tensor) -> Tensor:
    """A tensor on `memory`, in the layout of `description`; `shape` is (outputs, inputs)."""
    make = _tensor_maker()
    assert make is not None
    sides, strides = (ctypes.c_int64 * 2)(*reversed(shape)), (ctypes.c_int64 * 2)(1, 1)
    handle = ctypes.c_void_p()
    int8, cpu = 1, 0  # c10::ScalarType::Char, c10::DeviceType::CPU
    failed = make(
        ctypes.c_void_p(memory.data_ptr()), ctypes.c_int64(2), sides, strides, ctypes.c_int64(0),
        ctypes.c_int32(int8), ctypes.c_int32(cpu), ctypes.c_int32(0), ctypes.byref(handle),
        ctypes.c_int32(_MKLDNN_LAYOUT), ctypes.c_void_p(description.data_ptr()),
        ctypes.c_int64(len(description)),
    )  # fmt: skip
    if failed:
        raise RuntimeError("torch made no tensor of a matrix that was laid out for it")
    capsule = ctypes.pythonapi.PyCapsule_New
    capsule.restype = ctypes.py_object
    capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    owned = capsule(handle, None, None)
    made: Tensor = torch._C._aoti.alloc_tensor_by_stealing_from_void_ptr(owned)  # noqa: SLF001
    return made
