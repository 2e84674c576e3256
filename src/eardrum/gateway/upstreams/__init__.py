"""Upstreams: our runners, and external HTTP servers that serve models."""
