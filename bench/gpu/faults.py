"""Failing parts, to test their effect on the others."""

import os
import signal
import time

from bench.gpu.figures import Report
from bench.gpu.parts import Setup


def crash(_: Setup, report: Report) -> None:
    """Report a figure and get killed, as by a driver fault."""
    report.measure("before the crash", 1.0, "figures")
    os.kill(os.getpid(), signal.SIGKILL)


def hang(_: Setup, report: Report) -> None:
    """Report a figure and never return, as a deadlocked kernel."""
    report.measure("before the hang", 1.0, "figures")
    time.sleep(3600)


def wrong(_: Setup, report: Report) -> None:
    """Report an incorrect result."""
    report.check("wrong results", 1.0, "results", at_most=0.0)
