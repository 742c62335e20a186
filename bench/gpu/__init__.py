"""The engine on a GPU, proven and measured by one command: `scripts/bench gpu`.

Needs Python, torch, Triton, numpy and the source tree: no ffmpeg, no network, no installation.
Every part runs in a process of its own, so that a CUDA error, which ends all use of the device in
its process, costs that part alone.
"""
