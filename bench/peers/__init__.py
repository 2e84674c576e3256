"""Eardrum beside the servers and libraries that people would use instead, on the same weights and recordings."""
