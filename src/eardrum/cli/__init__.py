"""The command line: one module per group of commands.

This module stays empty: every command and `python -m eardrum.cli.microphone` import it.
"""
