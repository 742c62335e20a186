"""Part `memory`: memory of an idle engine, and its peak with a full batch."""

from pathlib import Path

import torch

from bench.gpu import sounds
from bench.gpu.figures import Report
from bench.gpu.opening import CHUNK_SECONDS, random_nemo, served
from bench.gpu.parts import Setup
from bench.gpu.timing import pipelined

_GB = 1e9
_GOAL = 7.0


def run(setup: Setup, report: Report) -> None:
    """On a GPU the memory reserved by torch, including graphs; on a CPU resident memory."""
    count, seconds = (2, 2.0) if setup.small else (128, CHUNK_SECONDS)
    with served(setup, random_nemo(setup), "bf16") as engine:
        if setup.cuda:
            torch.cuda.empty_cache()
        report.measure("warm and idle", _held(setup), "GB")
        _reset_peak(setup)
        batch = sounds.chunks(seconds, count)
        pipelined(engine, [batch, batch, batch])
        report.measure(f"peak, {count} x {seconds:g} s", _peak(setup), "GB", at_most=_GOAL)
        if setup.cuda:
            free, total = torch.cuda.mem_get_info()
            report.measure("used on the device, with its context", (total - free) / _GB, "GB")


def _held(setup: Setup) -> float:
    return torch.cuda.memory_reserved() / _GB if setup.cuda else _status("VmRSS")


def _reset_peak(setup: Setup) -> None:
    if setup.cuda:
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def _peak(setup: Setup) -> float:
    return torch.cuda.max_memory_reserved() / _GB if setup.cuda else _status("VmHWM")


def _status(field: str) -> float:
    """GB, from `/proc/self/status`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024 / _GB
