"""What could not be decoded, in sentences."""

from __future__ import annotations

import pytest

from eardrum.runner.integrity import DamageReport, Gap, read_claimed_bytes, read_claimed_seconds
from tests.recordings import encode, load_speech


def test_nothing_is_said_of_what_is_sound() -> None:
    damage = DamageReport()
    damage.check_duration(5.0, 5.3)
    damage.check_duration(5.4, 5.3)
    damage.check_size(5.0, 999, 1000)
    assert not damage
    assert damage.warnings == ()


def test_packets_and_gaps_are_counted() -> None:
    damage = DamageReport()
    for at in (3.04, 3.04, 8.5):
        damage.add_lost_packet(at)
        damage.add_gap(Gap(at, at + 2))
    assert damage
    assert damage.warnings == (
        "3 packets, the first at 3.0 s could not be decoded.",
        "There is no audio from 3.0 to 5.0 s by the file's timestamps, and in 2 more places, 6.0 s in all.",
    )


def test_what_follows_a_whole_recording_is_no_sound() -> None:
    damage = DamageReport()
    damage.add_lost_packet(3.0)
    damage.add_lost_packet(17.96)
    damage.add_lost_packet(17.96)
    damage.check_duration(17.96, 17.94)
    assert damage.warnings == ("A packet at 3.0 s could not be decoded.",)
    cut = DamageReport()
    cut.add_lost_packet(9.0)
    cut.check_duration(9.0, 17.94)
    assert len(cut.warnings) == 2


def test_an_end_is_told_once_and_a_long_list_cut() -> None:
    damage = DamageReport()
    damage.add_unreadable_rest(3.0)
    damage.check_duration(3.0, 9.0)
    damage.add_missing_end(3.0)
    assert damage.warnings == ("The file cannot be read beyond 3.0 s: the rest is damaged.",)
    for at in range(5000):
        damage.add_unreadable_rest(at)
    assert len(damage.warnings) < 12
    assert "4,993 more warnings" in damage.warnings[-1]


@pytest.mark.slow
def test_what_headers_claim() -> None:
    for rate, seconds in ((44_100, 18.0), (16_000, 18.0), (8_000, 18.1)):
        assert abs((read_claimed_seconds(encode(load_speech(), "mp3", rate=rate)) or 0) - seconds) < 0.15
    picture = b"ID3\4\0\0\0\0\x1f\x10" + bytes(0x1F << 7 | 0x10)
    mp3 = encode(load_speech(), "mp3")
    without = mp3[10 + int.from_bytes(mp3[8:10]) :] if mp3[:3] == b"ID3" else mp3
    assert read_claimed_seconds(picture + without) == read_claimed_seconds(mp3)
    index = max(mp3.find(b"Xing"), mp3.find(b"Info"))
    assert not any(read_claimed_seconds(mp3[: index + count]) for count in range(12)), "only a part of the index is known"
    for container in ("wav", "aiff"):
        data = encode(load_speech(), container)
        assert read_claimed_bytes(data[:64]) == len(data)
    for head in (b"", b"RIFF", b"ID3", b"\xff\xfb", b"RF64" + bytes(4), b"OggS" + bytes(60), mp3[-60:]):
        assert read_claimed_bytes(head) is None
        assert read_claimed_seconds(head) is None
