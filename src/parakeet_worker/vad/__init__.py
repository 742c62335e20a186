"""Voice activity: where in a recording someone speaks."""
