"""Out-of-memory errors and device failures in every form that libraries raise."""

import errno
import gc
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch

from parakeet_worker.engine.failures import (
    clear_tracebacks,
    is_device_failure,
    is_out_of_memory,
    translate_out_of_memory,
)
from parakeet_worker.errors import EngineLost, OutOfMemory

OUT_OF_MEMORY = [
    torch.OutOfMemoryError("none left"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ..."),
    torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be ..."),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate"
                 " memory: you tried to allocate 4611686018427387904 bytes. Error code 12"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    OutOfMemory(30.0),
]  # fmt: skip
DEVICE_FAILURES = [
    torch.AcceleratorError("an illegal memory access was encountered"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: misaligned address"),
    RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
    RuntimeError("cuFFT error: CUFFT_EXEC_FAILED"),
]
NEITHER = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)"),
    ValueError("out of memory"),
    KeyError("CUDA error"),
    OSError(errno.ENOENT, "No such file or directory"),
    EngineLost("CUDA error: misaligned address"),
    KeyboardInterrupt(),
]


@pytest.mark.parametrize("failure", OUT_OF_MEMORY, ids=repr)
def test_out_of_memory_is_recognised_and_is_not_a_device_failure(failure):
    assert is_out_of_memory(failure)
    assert not is_device_failure(failure)


@pytest.mark.parametrize("failure", DEVICE_FAILURES, ids=repr)
def test_a_device_failure_is_recognised_and_is_not_out_of_memory(failure):
    assert is_device_failure(failure)
    assert not is_out_of_memory(failure)


@pytest.mark.parametrize("failure", NEITHER, ids=repr)
def test_other_exceptions_are_neither(failure):
    assert not is_out_of_memory(failure)
    assert not is_device_failure(failure)


@pytest.mark.parametrize("allocate", [torch.empty, np.empty])
def test_out_of_memory_on_this_machine_is_recognised(allocate):
    with pytest.raises((RuntimeError, MemoryError)) as raised:
        allocate(1 << 56)
    assert is_out_of_memory(raised.value)


@pytest.mark.parametrize("failure", OUT_OF_MEMORY[:-1], ids=repr)
def test_out_of_memory_is_translated_with_its_cause(failure):
    with pytest.raises(OutOfMemory) as raised, translate_out_of_memory(4.0):
        raise failure
    assert raised.value.facts == {"seconds": 4.0}
    assert raised.value.__cause__ is failure


@pytest.mark.parametrize("failure", [*DEVICE_FAILURES, *NEITHER, OutOfMemory(7.0)], ids=repr)
def test_other_exceptions_propagate_unchanged(failure):
    with pytest.raises(type(failure)) as raised, translate_out_of_memory(4.0):
        raise failure
    assert raised.value is failure


def compute(held):
    """Raises with a tensor in a frame that a cycle keeps: its variable is in its own traceback."""
    states = torch.zeros(1000)
    held.append(weakref.ref(states))
    failure = torch.OutOfMemoryError(f"out of memory with {len(states)}")
    raise failure


def attempt(held):
    states = torch.zeros(10)
    held.append(weakref.ref(states))
    try:
        compute(held)
    except torch.OutOfMemoryError:
        held.append(weakref.ref(states))
        raise OutOfMemory(float(len(states)))  # noqa: B904  # raised during, not from


def test_clear_tracebacks_releases_the_frames_of_chained_exceptions():
    held = []
    gc.disable()
    try:
        with pytest.raises(OutOfMemory) as raised, translate_out_of_memory(1.0):
            attempt(held)
        failure = raised.value
        del raised
        assert all(one() is not None for one in held), "its frames keep them until then"
        clear_tracebacks(failure)
        assert [one() for one in held] == [None] * 3
        assert failure.__traceback__ is failure.__cause__ is failure.__context__ is None
        assert failure.facts == {"seconds": 10.0}
    finally:
        gc.enable()


def test_clear_tracebacks_terminates_for_cyclic_causes():
    one, other = RuntimeError("one"), RuntimeError("other")
    one.__cause__, other.__context__ = other, one
    clear_tracebacks(one)
    assert other.__context__ is None


def test_classification_works_without_torch():
    code = (
        "import sys\n"
        "from parakeet_worker.engine import failures\n"
        "assert failures.is_out_of_memory(RuntimeError('CUDA error: out of memory'))\n"
        "assert failures.is_device_failure(RuntimeError('CUDA error: misaligned address'))\n"
        "assert not failures.is_device_failure(RuntimeError('no'))\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
