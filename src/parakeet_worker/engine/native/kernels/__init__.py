"""Triton kernels for the encoder and the TDT search on a GPU, one file per kernel.

Each module contains the function under `triton.jit`, `launch`, which allocates the output and
launches the kernel, and `reference`, plain PyTorch with the same signature and the same result.
"""
