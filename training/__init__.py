"""Makes the demo checkpoint: speech from espeak-ng, a small FastConformer-TDT, a `.nemo` file."""
