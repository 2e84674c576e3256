"""What is kept of what was said, and how it is said again."""

from __future__ import annotations

import random

import pytest

from eardrum.gateway.live import replay_buffer as tape_module
from eardrum.gateway.live.replay_buffer import ReplayBuffer, SessionReplay
from eardrum.live import (
    AudioEncoding,
    AudioFormat,
    ClearCommand,
    CommitCommand,
    ConfigureCommand,
    EndpointingSettings,
    FinishCommand,
    LiveCommand,
    SessionSettings,
    UtteranceCommitted,
)

SETTINGS = SessionSettings()
SECOND = 32_000


def taken(tape: ReplayBuffer) -> list[bytes | LiveCommand]:
    items = []
    while (item := tape.take_next()) is not None:
        items.append(item)
    return items


def audio(items: list[bytes | LiveCommand]) -> bytes:
    return b"".join(item for item in items if isinstance(item, bytes))


def fed(*parts: bytes | LiveCommand, settings: SessionSettings = SETTINGS) -> ReplayBuffer:
    tape = ReplayBuffer(settings)
    for part in parts:
        if isinstance(part, bytes):
            tape.feed(part)
        else:
            tape.add_command(part)
    return tape


def again(tape: ReplayBuffer, *committed: UtteranceCommitted) -> SessionReplay:
    tape.rewind()
    return tape.build_replay(committed)


def test_what_was_said_comes_out_in_its_order() -> None:
    tape = fed(b"abcd", CommitCommand(), b"ef", ClearCommand(), FinishCommand())
    assert taken(tape) == [b"abcd", CommitCommand(), b"ef", ClearCommand(), FinishCommand()]
    assert tape.take_next() is None
    assert tape.finished


def test_nothing_is_ahead_once_everything_was_taken() -> None:
    tape = fed(b"abcd", CommitCommand())
    assert tape.unsent_bytes > 4
    taken(tape)
    assert tape.unsent_bytes == 0


def test_an_utterance_in_progress_is_said_again_from_the_last_end_on() -> None:
    tape = fed(bytes(SECOND), b"\1" * SECOND)
    taken(tape)
    tape.record_commit(1.0)
    replay = again(tape)
    assert (replay.items, replay.time_map) == ([], [(0.0, 1.0)])
    assert audio(taken(tape)) == b"\1" * SECOND


def test_utterances_without_text_are_said_again_one_by_one_with_ends_of_their_own() -> None:
    tape = fed(b"\1" * SECOND, b"\0" * SECOND, b"\2" * SECOND, b"\3" * SECOND)
    taken(tape)
    open_ones = [UtteranceCommitted(1, 0.0, 1.0), UtteranceCommitted(2, 2.0, 3.0)]
    for utterance in open_ones:
        tape.record_commit(utterance.end)
    replay = again(tape, *open_ones)
    first, one, commit, second, two, commit_again, after = replay.items
    assert isinstance(first, ConfigureCommand)
    assert first.settings.endpointing is None
    assert second == first
    assert (one, two) == (b"\1" * SECOND, b"\2" * SECOND)
    assert commit == commit_again == CommitCommand()
    assert after == ConfigureCommand(SETTINGS)
    assert replay.time_map == [(0.0, 0.0), (1.0, 2.0), (2.0, 3.0)]
    assert audio(taken(tape)) == b"\3" * SECOND


def test_an_utterance_is_said_again_under_the_settings_it_began_with() -> None:
    other = SessionSettings(partials=False, endpointing=EndpointingSettings(silence_s=2.0))
    tape = fed(b"\1" * SECOND, ConfigureCommand(other), b"\2" * SECOND)
    taken(tape)
    tape.record_commit(1.0)
    replay = again(tape, UtteranceCommitted(1, 0.0, 1.0))
    assert isinstance(replay.items[-1], ConfigureCommand)
    assert replay.items[-1].settings == other
    taken(tape)
    tape.record_commit(2.0)
    tape.drop_before(1.0)
    assert again(tape, UtteranceCommitted(2, 1.0, 2.0)).settings == other


def test_a_commit_without_an_answer_is_repeated_and_one_with_an_answer_is_not() -> None:
    tape = fed(b"\1" * SECOND, CommitCommand(), b"\2" * SECOND, CommitCommand(), settings=SessionSettings(endpointing=None))
    taken(tape)
    tape.record_commit(1.0)
    tape.rewind()
    assert taken(tape) == [b"\2" * SECOND, CommitCommand()]
    tape.record_commit(2.0)
    tape.rewind()
    assert taken(tape) == []


def test_an_end_by_a_pause_does_not_answer_a_commit_that_came_much_later() -> None:
    tape = fed(b"\1" * SECOND * 5, CommitCommand())
    taken(tape)
    tape.record_commit(1.0)
    tape.rewind()
    assert taken(tape)[-1] == CommitCommand()


def test_a_refused_commit_is_not_repeated() -> None:
    tape = fed(CommitCommand(), b"\1" * SECOND)
    taken(tape)
    tape.record_refusal()
    tape.rewind()
    assert audio(taken(tape)) == b"\1" * SECOND


def test_what_was_cleared_is_not_said_again() -> None:
    tape = fed(b"\1" * SECOND, ClearCommand(), b"\2" * SECOND)
    taken(tape)
    tape.record_clear()
    tape.rewind()
    assert taken(tape) == [b"\2" * SECOND]


def test_finish_is_repeated() -> None:
    tape = fed(b"\1" * SECOND, FinishCommand())
    taken(tape)
    tape.record_commit(1.0)
    again(tape, UtteranceCommitted(1, 0.0, 1.0))
    assert taken(tape) == [FinishCommand()]


def test_no_more_is_kept_than_allowed_however_small_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tape_module, "SILENCE_KEPT_S", 2.0)
    tape = ReplayBuffer(SETTINGS)
    for _ in range(5 * SECOND // 7):
        tape.feed(b"1234567")
        taken(tape)
        assert len(tape._audio) <= 2 * SECOND + 2
    assert 2.9 < tape.kept_since < 3.1


def test_more_is_kept_while_it_holds_speech(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tape_module, "SILENCE_KEPT_S", 1.0)
    monkeypatch.setattr(tape_module, "SPEECH_KEPT_S", 3.0)
    tape = ReplayBuffer(SETTINGS)
    tape.has_speech = True
    tape.feed(bytes(5 * SECOND))
    taken(tape)
    assert tape.kept_since == pytest.approx(2.0)
    tape.has_speech = False
    tape.feed(bytes(2))
    taken(tape)
    assert tape.kept_since == pytest.approx(4.0, abs=0.001)
    manual = fed(bytes(5 * SECOND), settings=SessionSettings(endpointing=None))
    taken(manual)
    assert manual.kept_since == pytest.approx(2.0)


def test_what_no_process_was_sent_is_kept_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tape_module, "SILENCE_KEPT_S", 1.0)
    tape = fed(bytes(5 * SECOND))
    assert tape.kept_since == 0.0
    assert len(audio(taken(tape))) == 5 * SECOND


def test_of_a_container_nothing_is_kept() -> None:
    tape = fed(b"webm" * 1000, settings=SessionSettings(format=AudioFormat(AudioEncoding.CONTAINER)))
    assert tape.is_container
    assert audio(taken(tape)) == b"webm" * 1000
    assert len(tape._audio) == 0


def test_a_process_never_begins_in_the_middle_of_a_sample() -> None:
    """Random pieces, ends and rewinds: every process hears samples, and all of them since the last end."""
    dice = random.Random(5)
    for _ in range(200):
        tape, stream = ReplayBuffer(SETTINGS), b""
        for _ in range(dice.randrange(1, 20)):
            piece = dice.randbytes(dice.randrange(1, 9000))
            tape.feed(piece)
            stream += piece
            if dice.random() < 0.7:
                taken(tape)
            if dice.random() < 0.3:
                tape.record_commit(dice.uniform(0, len(stream) / SECOND))
                tape.drop_before(tape.last_commit)
            if dice.random() < 0.3:
                begins = round(again(tape).time_map[-1][1] * SECOND)
                assert begins % 2 == 0
                assert audio(taken(tape)) == stream[begins:]


def test_a_session_of_silence_needs_no_process_to_be_ended() -> None:
    tape = fed(bytes(SECOND))
    assert tape.has_pending
    taken(tape)
    assert not tape.has_pending
    assert fed(FinishCommand()).has_pending is False
    manual = fed(bytes(SECOND), settings=SessionSettings(endpointing=None))
    taken(manual)
    assert manual.has_pending
    manual.record_commit(1.0)
    assert not manual.has_pending
