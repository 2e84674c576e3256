"""What the engine interface itself computes."""

from __future__ import annotations

import numpy as np
import pytest

from eardrum.engines.base import Window
from eardrum.transcription import TranscriptionRequest


def create_window(*pieces: tuple[float, float]) -> Window:
    return Window(np.zeros(16_000 * 10, np.float32), 5.0, 1.0, (0.0, 10.0), TranscriptionRequest(), pieces=pieces)


@pytest.mark.parametrize("pieces", [(), ((0.0, 5.0),)])
def test_a_window_in_one_piece_is_only_shifted(pieces: tuple[tuple[float, float], ...]) -> None:
    assert create_window(*pieces).clock(2.5) == 7.5
    assert create_window(*pieces).clock(0.0, ending=True) == 5.0


def test_a_packed_windows_clock_jumps_over_what_was_taken_out() -> None:
    packed = create_window((0.0, 5.0), (4.0, 20.0), (7.0, 60.0))
    assert [packed.clock(position) for position in (0.0, 3.9, 4.0, 6.5, 7.0, 10.0)] == pytest.approx([5, 8.9, 20, 22.5, 60, 63])


def test_what_ends_at_a_seam_ends_before_the_pause() -> None:
    packed = create_window((0.0, 5.0), (4.0, 20.0))
    assert packed.clock(4.0, ending=True) == 9.0
    assert packed.clock(4.0) == 20.0
