"""From a file to samples at 16 kHz: ffmpeg, its clock, tracks and channels."""
