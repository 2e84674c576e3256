"""Forwards requests for models that other servers serve: requests and responses pass through as they arrive."""
