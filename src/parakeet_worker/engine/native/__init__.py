"""The project's own PyTorch engine."""

from parakeet_worker.engine.native.engine import NativeEngine

__all__ = ["NativeEngine"]
