"""Benchmarks of the worker, NeMo, transformers and onnx-asr; one module per question."""
