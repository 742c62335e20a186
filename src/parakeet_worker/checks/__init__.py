"""Checks of a deployment: `parakeet doctor`, `parakeet verify`, and a worker's own at its start."""
