"""The HTTP server: what it takes, what it answers, and its manners."""
