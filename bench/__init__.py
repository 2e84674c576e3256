"""Benchmarks: ratios of this server against the usual alternatives, measured side by side."""
