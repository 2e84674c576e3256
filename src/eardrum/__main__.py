"""The command `eardrum`, which is also `python -m eardrum`."""

from eardrum.importing import uncollected

with uncollected():
    from eardrum.cli import main

if __name__ == "__main__":
    main()
