"""Correctness and speed of the engine on a GPU, in one command: `scripts/bench gpu`.

Needs Python, torch, Triton, numpy and the source tree: no ffmpeg, no network, no installation.
Every part runs in a separate process: a CUDA error ends all use of the device in its process, and
costs only that part.
"""
