"""The command line: one module per group of commands.

This package module is light, because every command and `python -m eardrum.cli.main.microphone` import it. `gc_paused` switches
the garbage collector off during imports: they leave next to no garbage, and looking for it takes a tenth of their time.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def gc_paused() -> Iterator[None]:
    """Importing makes next to no garbage, and to look for it takes a tenth of the time."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()
