"""Benchmarks: ratios of this server against the ways things are usually done, measured side by side."""
