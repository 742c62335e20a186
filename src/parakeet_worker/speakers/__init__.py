"""Speaker diarization: which speaker is active when, and who said each word."""
