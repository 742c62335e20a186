"""Triton kernels for the encoder and the search on a GPU, one file per kernel.

Each file has the Triton function, `launch`, which allocates the result and starts the kernel,
and `reference`, plain PyTorch with the same signature and the same result.
"""
