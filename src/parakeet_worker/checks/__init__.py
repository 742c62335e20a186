"""Checks of an installation: `doctor`, model verification, fitness of a queue worker."""
