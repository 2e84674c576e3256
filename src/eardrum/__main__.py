"""The command `eardrum`, which is also `python -m eardrum`."""

import gc

gc.disable()  # importing makes next to no garbage, and to look for it takes a tenth of the time

from eardrum.cli import main  # noqa: E402

gc.enable()

if __name__ == "__main__":
    main()
