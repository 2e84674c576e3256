"""Starts the models' processes, watches them, and stops them."""
