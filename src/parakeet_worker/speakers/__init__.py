"""Speaker diarization: which speaker is active when, and the speaker of each word."""
