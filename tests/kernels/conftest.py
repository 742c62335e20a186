"""Kernels in Triton's interpreter: it must be chosen before Triton is imported."""

import os

os.environ["TRITON_INTERPRET"] = "1"
