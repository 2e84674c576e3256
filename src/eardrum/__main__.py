"""Runs the command `eardrum`, also as `python -m eardrum`."""

from eardrum.garbage_collection import pause_garbage_collection

with pause_garbage_collection():
    from eardrum.cli.main import main

if __name__ == "__main__":
    main()
