"""Runs the command `eardrum`, also as `python -m eardrum`."""

from eardrum.cli import gc_paused

with gc_paused():
    from eardrum.cli.main import main

if __name__ == "__main__":
    main()
