"""Private torch functions for int8, looked up in one place and checked before use."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_LINEAR_PARAMETERS = (
    "qx", "x_scale", "x_zero_point", "qw", "w_scale", "w_zero_point", "bias",
    "output_scale", "output_zero_point", "output_dtype",
    "post_op_name", "post_op_args", "post_op_algorithm",
)  # fmt: skip
_INT8, _CPU, _MKLDNN = 1, 0, 3  # c10::ScalarType::Char, c10::DeviceType::CPU, c10::Layout::Mkldnn


class TorchChanged(Exception):
    """This torch does not have the private functions that int8 requires."""


@dataclass(frozen=True, slots=True)
class Int8Functions:
    """Operators of torch 2.8 that have no public equivalent."""

    prepack: Callable[..., Tensor]
    """Reorder an (outputs, inputs) int8 matrix for oneDNN."""
    linear: Callable[..., Tensor]
    """uint8 inputs times a prepacked matrix."""
    weight_only_linear: Callable[..., Tensor]
    """bfloat16 inputs times an int8 matrix."""


@cache
def load() -> Int8Functions:
    """Look up the operators; raises `TorchChanged`."""
    return Int8Functions(
        prepack=_operator("onednn", "qlinear_prepack", ("weight", "x_shape")),
        linear=_operator("onednn", "qlinear_pointwise", _LINEAR_PARAMETERS),
        weight_only_linear=_operator("aten", "_weight_int8pack_mm", ("self", "mat2", "scales")),
    )


def missing() -> str | None:
    """What this torch lacks for int8; None if it has everything."""
    try:
        load()
    except TorchChanged as failure:
        return str(failure)
    return None


@dataclass(frozen=True, slots=True)
class LayoutFunctions:
    """Access to the memory layout of prepacked matrices."""

    memory: Callable[[Tensor], Tensor]
    """The bytes of a prepacked matrix."""
    descriptor: Callable[[Tensor], Tensor]
    """The serialised layout of a prepacked matrix."""
    wrap: Callable[[Tensor, torch.Size, Tensor], Tensor]
    """(memory, (outputs, inputs), descriptor) -> a prepacked matrix on that memory."""


@cache
def load_layout() -> LayoutFunctions | None:
    """Look up the functions; None if one is missing, after which oneDNN reorders every matrix."""
    try:
        bytes_of = _operator("mkldnn", "_nbytes", ("mkldnn_tensor",))
        address_of = _operator("mkldnn", "data_ptr", ("mkldnn_tensor",))
        descriptor = _operator("mkldnn", "_get_mkldnn_serialized_md", ("mkldnn_tensor",))
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        create = library.aoti_torch_create_tensor_from_blob_v2
        take = torch._C._aoti.alloc_tensor_by_stealing_from_void_ptr  # noqa: SLF001
    except (TorchChanged, OSError, AttributeError):
        return None

    def memory(prepacked: Tensor) -> Tensor:
        array: Any = ctypes.c_int8 * bytes_of(prepacked)
        return torch.frombuffer(array.from_address(address_of(prepacked)), dtype=torch.int8)

    def wrap(memory: Tensor, shape: torch.Size, descriptor: Tensor) -> Tensor:
        return _wrap(create, take, memory, shape, descriptor)

    return LayoutFunctions(memory, descriptor, wrap)


def _operator(namespace: str, name: str, parameters: tuple[str, ...]) -> Callable[..., Any]:
    """A registered operator with exactly these parameters; raises `TorchChanged`."""
    try:
        operator = getattr(getattr(torch.ops, namespace), name)
        arguments = tuple(one.name for one in operator.default._schema.arguments)  # noqa: SLF001
    except (AttributeError, RuntimeError) as failure:
        raise TorchChanged(f"torch {torch.__version__} has no {namespace}.{name}") from failure
    if arguments != parameters:
        expected = ", ".join(parameters)
        raise TorchChanged(
            f"{namespace}.{name} of torch {torch.__version__} does not take ({expected})"
        )
    function: Callable[..., Any] = operator.default
    return function


def _wrap(
    create: Callable[..., int],
    take: Callable[[Any], Tensor],
    memory: Tensor,
    shape: torch.Size,
    descriptor: Tensor,
) -> Tensor:
    sizes, strides = (ctypes.c_int64 * 2)(*reversed(shape)), (ctypes.c_int64 * 2)(1, 1)
    handle = ctypes.c_void_p()
    failed = create(
        ctypes.c_void_p(memory.data_ptr()), ctypes.c_int64(2), sizes, strides, ctypes.c_int64(0),
        ctypes.c_int32(_INT8), ctypes.c_int32(_CPU), ctypes.c_int32(0), ctypes.byref(handle),
        ctypes.c_int32(_MKLDNN), ctypes.c_void_p(descriptor.data_ptr()),
        ctypes.c_int64(len(descriptor)),
    )  # fmt: skip
    if failed:
        raise RuntimeError("torch cannot create a tensor on prepacked memory")
    new_capsule = ctypes.pythonapi.PyCapsule_New
    new_capsule.restype = ctypes.py_object
    new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return take(new_capsule(handle, None, None))
