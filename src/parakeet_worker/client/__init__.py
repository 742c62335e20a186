"""The caller's side: files to an endpoint, its answers beside them, and what that cost."""
