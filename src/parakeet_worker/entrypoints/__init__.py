"""One folder per kind of process."""
