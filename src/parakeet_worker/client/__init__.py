"""The caller's side: files to an endpoint, its answers next to them, and what that cost."""
