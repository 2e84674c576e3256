"""Eardrum: speech to text behind one port."""

__version__ = "0.1.0"
