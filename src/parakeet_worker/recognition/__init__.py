"""From samples to words: chunks, the recognizer, overlaps, gaps and the transcript."""
