"""Requests to other servers: what sources and outputs share."""
