"""Models: their names, files and capabilities."""
