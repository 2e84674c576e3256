"""What is kept of what was said, and how it is said again."""

from __future__ import annotations

import random

import pytest

from eardrum.gateway.live import tape as tape_module
from eardrum.gateway.live.tape import Replay, Tape
from eardrum.live import Clear, Command, Commit, Committed, Configure, Encoding, Endpointing, Finish, Format, Settings

SETTINGS = Settings()
SECOND = 32_000


def taken(tape: Tape) -> list[bytes | Command]:
    items = []
    while (item := tape.take()) is not None:
        items.append(item)
    return items


def audio(items: list[bytes | Command]) -> bytes:
    return b"".join(item for item in items if isinstance(item, bytes))


def fed(*parts: bytes | Command, settings: Settings = SETTINGS) -> Tape:
    tape = Tape(settings)
    for part in parts:
        if isinstance(part, bytes):
            tape.feed(part)
        else:
            tape.say(part)
    return tape


def again(tape: Tape, *committed: Committed) -> Replay:
    tape.rewind()
    return tape.replay(committed)


def test_what_was_said_comes_out_in_its_order() -> None:
    tape = fed(b"abcd", Commit(), b"ef", Clear(), Finish())
    assert taken(tape) == [b"abcd", Commit(), b"ef", Clear(), Finish()]
    assert tape.take() is None
    assert tape.finished


def test_nothing_is_ahead_once_everything_was_taken() -> None:
    tape = fed(b"abcd", Commit())
    assert tape.ahead > 4
    taken(tape)
    assert tape.ahead == 0


def test_an_utterance_in_progress_is_said_again_from_the_last_end_on() -> None:
    tape = fed(bytes(SECOND), b"\1" * SECOND)
    taken(tape)
    tape.committed(1.0)
    replay = again(tape)
    assert (replay.items, replay.clock) == ([], [(0.0, 1.0)])
    assert audio(taken(tape)) == b"\1" * SECOND


def test_utterances_without_text_are_said_again_one_by_one_with_ends_of_their_own() -> None:
    tape = fed(b"\1" * SECOND, b"\0" * SECOND, b"\2" * SECOND, b"\3" * SECOND)
    taken(tape)
    open_ones = [Committed(1, 0.0, 1.0), Committed(2, 2.0, 3.0)]
    for utterance in open_ones:
        tape.committed(utterance.end)
    replay = again(tape, *open_ones)
    first, one, commit, second, two, commit_again, after = replay.items
    assert isinstance(first, Configure)
    assert first.settings.endpointing is None
    assert second == first
    assert (one, two) == (b"\1" * SECOND, b"\2" * SECOND)
    assert commit == commit_again == Commit()
    assert after == Configure(SETTINGS)
    assert replay.clock == [(0.0, 0.0), (1.0, 2.0), (2.0, 3.0)]
    assert audio(taken(tape)) == b"\3" * SECOND


def test_an_utterance_is_said_again_under_the_settings_it_began_with() -> None:
    other = Settings(partials=False, endpointing=Endpointing(silence_s=2.0))
    tape = fed(b"\1" * SECOND, Configure(other), b"\2" * SECOND)
    taken(tape)
    tape.committed(1.0)
    replay = again(tape, Committed(1, 0.0, 1.0))
    assert isinstance(replay.items[-1], Configure)
    assert replay.items[-1].settings == other
    taken(tape)
    tape.committed(2.0)
    tape.forget(1.0)
    assert again(tape, Committed(2, 1.0, 2.0)).settings == other


def test_a_commit_without_an_answer_is_repeated_and_one_with_an_answer_is_not() -> None:
    tape = fed(b"\1" * SECOND, Commit(), b"\2" * SECOND, Commit(), settings=Settings(endpointing=None))
    taken(tape)
    tape.committed(1.0)
    tape.rewind()
    assert taken(tape) == [b"\2" * SECOND, Commit()]
    tape.committed(2.0)
    tape.rewind()
    assert taken(tape) == []


def test_an_end_by_a_pause_does_not_answer_a_commit_that_came_much_later() -> None:
    tape = fed(b"\1" * SECOND * 5, Commit())
    taken(tape)
    tape.committed(1.0)
    tape.rewind()
    assert taken(tape)[-1] == Commit()


def test_a_refused_commit_is_not_repeated() -> None:
    tape = fed(Commit(), b"\1" * SECOND)
    taken(tape)
    tape.refused()
    tape.rewind()
    assert audio(taken(tape)) == b"\1" * SECOND


def test_what_was_cleared_is_not_said_again() -> None:
    tape = fed(b"\1" * SECOND, Clear(), b"\2" * SECOND)
    taken(tape)
    tape.cleared()
    tape.rewind()
    assert taken(tape) == [b"\2" * SECOND]


def test_finish_is_repeated() -> None:
    tape = fed(b"\1" * SECOND, Finish())
    taken(tape)
    tape.committed(1.0)
    again(tape, Committed(1, 0.0, 1.0))
    assert taken(tape) == [Finish()]


def test_no_more_is_kept_than_allowed_however_small_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tape_module, "QUIET_S", 2.0)
    tape = Tape(SETTINGS)
    for _ in range(5 * SECOND // 7):
        tape.feed(b"1234567")
        taken(tape)
        assert len(tape._audio) <= 2 * SECOND + 2
    assert 2.9 < tape.kept_from < 3.1


def test_more_is_kept_while_it_holds_speech(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tape_module, "QUIET_S", 1.0)
    monkeypatch.setattr(tape_module, "SPEECH_S", 3.0)
    tape = Tape(SETTINGS)
    tape.speech = True
    tape.feed(bytes(5 * SECOND))
    taken(tape)
    assert tape.kept_from == pytest.approx(2.0)
    tape.speech = False
    tape.feed(bytes(2))
    taken(tape)
    assert tape.kept_from == pytest.approx(4.0, abs=0.001)
    manual = fed(bytes(5 * SECOND), settings=Settings(endpointing=None))
    taken(manual)
    assert manual.kept_from == pytest.approx(2.0)


def test_what_no_process_was_sent_is_kept_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tape_module, "QUIET_S", 1.0)
    tape = fed(bytes(5 * SECOND))
    assert tape.kept_from == 0.0
    assert len(audio(taken(tape))) == 5 * SECOND


def test_of_a_container_nothing_is_kept() -> None:
    tape = fed(b"webm" * 1000, settings=Settings(format=Format(Encoding.CONTAINER)))
    assert tape.whole
    assert audio(taken(tape)) == b"webm" * 1000
    assert len(tape._audio) == 0


def test_a_process_never_begins_in_the_middle_of_a_sample() -> None:
    """Random pieces, ends and rewinds: every process hears samples, and all of them since the last end."""
    dice = random.Random(5)
    for _ in range(200):
        tape, stream = Tape(SETTINGS), b""
        for _ in range(dice.randrange(1, 20)):
            piece = dice.randbytes(dice.randrange(1, 9000))
            tape.feed(piece)
            stream += piece
            if dice.random() < 0.7:
                taken(tape)
            if dice.random() < 0.3:
                tape.committed(dice.uniform(0, len(stream) / SECOND))
                tape.forget(tape.cut)
            if dice.random() < 0.3:
                begins = round(again(tape).clock[-1][1] * SECOND)
                assert begins % 2 == 0
                assert audio(taken(tape)) == stream[begins:]


def test_a_session_of_silence_needs_no_process_to_be_ended() -> None:
    tape = fed(bytes(SECOND))
    assert tape.unheard
    taken(tape)
    assert not tape.unheard
    assert fed(Finish()).unheard is False
    manual = fed(bytes(SECOND), settings=Settings(endpointing=None))
    taken(manual)
    assert manual.unheard
    manual.committed(1.0)
    assert not manual.unheard
