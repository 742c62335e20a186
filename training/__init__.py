"""Trains the demo checkpoint, a small FastConformer-TDT, on speech from espeak-ng."""
