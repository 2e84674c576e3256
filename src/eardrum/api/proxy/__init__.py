"""Forwards requests for external models to their upstreams. Requests and responses pass through as they arrive."""
