"""One thin module per way in."""
