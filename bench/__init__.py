"""Measures the worker beside NeMo, transformers and onnx-asr; one module per question."""
