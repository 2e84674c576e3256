"""How the threads of engines' libraries wait for each other."""

from __future__ import annotations

import os


def wait_without_spinning() -> None:
    """Have OpenMP's threads sleep at barriers. To be called before the library is loaded.

    By default they spin for a while, which burns CPU whenever another process has the core of the thread they wait for: seen,
    a tenth of CTranslate2's decoding on a machine with other work, and nothing on an idle one.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
