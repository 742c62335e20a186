"""Voice activity detection: which parts of a recording contain speech."""
