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


def take_all(tape: ReplayBuffer) -> list[bytes | LiveCommand]:
    items = []
    while (item := tape.take_next()) is not None:
        items.append(item)
    return items


def join_audio(items: list[bytes | LiveCommand]) -> bytes:
    return b"".join(item for item in items if isinstance(item, bytes))


def create_buffer(*parts: bytes | LiveCommand, settings: SessionSettings = SETTINGS) -> ReplayBuffer:
    tape = ReplayBuffer(settings)
    for part in parts:
        if isinstance(part, bytes):
            tape.feed(part)
        else:
            tape.add_command(part)
    return tape


def create_replay(tape: ReplayBuffer, *committed: UtteranceCommitted) -> SessionReplay:
    tape.rewind()
    return tape.build_replay(committed)


def test_what_was_said_comes_out_in_its_order() -> None:
    tape = create_buffer(b"abcd", CommitCommand(), b"ef", ClearCommand(), FinishCommand())
    assert take_all(tape) == [b"abcd", CommitCommand(), b"ef", ClearCommand(), FinishCommand()]
    assert tape.take_next() is None
    assert tape.finished


def test_nothing_is_ahead_once_everything_was_taken() -> None:
    tape = create_buffer(b"abcd", CommitCommand())
    assert tape.unsent_bytes > 4
    take_all(tape)
    assert tape.unsent_bytes == 0


def test_an_utterance_in_progress_is_said_again_from_the_last_end_on() -> None:
    tape = create_buffer(bytes(SECOND), b"\1" * SECOND)
    take_all(tape)
    tape.record_commit(1.0)
    replay = create_replay(tape)
    assert (replay.items, replay.time_map) == ([], [(0.0, 1.0)])
    assert join_audio(take_all(tape)) == b"\1" * SECOND


def test_utterances_without_text_are_said_again_one_by_one_with_ends_of_their_own() -> None:
    tape = create_buffer(b"\1" * SECOND, b"\0" * SECOND, b"\2" * SECOND, b"\3" * SECOND)
    take_all(tape)
    open_ones = [UtteranceCommitted(1, 0.0, 1.0), UtteranceCommitted(2, 2.0, 3.0)]
    for utterance in open_ones:
        tape.record_commit(utterance.end)
    replay = create_replay(tape, *open_ones)
    first, one, commit, second, two, commit_again, after = replay.items
    assert isinstance(first, ConfigureCommand)
    assert first.settings.endpointing is None
    assert second == first
    assert (one, two) == (b"\1" * SECOND, b"\2" * SECOND)
    assert commit == commit_again == CommitCommand()
    assert after == ConfigureCommand(SETTINGS)
    assert replay.time_map == [(0.0, 0.0), (1.0, 2.0), (2.0, 3.0)]
    assert join_audio(take_all(tape)) == b"\3" * SECOND


def test_an_utterance_is_said_again_under_the_settings_it_began_with() -> None:
    other = SessionSettings(partials=False, endpointing=EndpointingSettings(silence_s=2.0))
    tape = create_buffer(b"\1" * SECOND, ConfigureCommand(other), b"\2" * SECOND)
    take_all(tape)
    tape.record_commit(1.0)
    replay = create_replay(tape, UtteranceCommitted(1, 0.0, 1.0))
    assert isinstance(replay.items[-1], ConfigureCommand)
    assert replay.items[-1].settings == other
    take_all(tape)
    tape.record_commit(2.0)
    tape.drop_before(1.0)
    assert create_replay(tape, UtteranceCommitted(2, 1.0, 2.0)).settings == other


@pytest.mark.parametrize("between", [(), (CommitCommand(),)], ids=["alone", "with refused commits"])
def test_of_settings_without_audio_only_the_last_ones_are_kept(between: tuple[LiveCommand, ...]) -> None:
    tape = create_buffer(bytes(SECOND))
    for number in range(100):
        other = SessionSettings(endpointing=EndpointingSettings(silence_s=number))
        for command in (ConfigureCommand(other), *between):
            tape.add_command(command)
        assert take_all(tape)[-1 - len(between) :] == [ConfigureCommand(other), *between]
        tape.record_refusal()
    assert len(tape._commands) == 1
    tape.feed(b"\1" * SECOND)
    tape.record_commit(1.0)
    assert create_replay(tape).settings == other


def test_a_commit_keeps_the_settings_before_it() -> None:
    tape = create_buffer(bytes(SECOND), ConfigureCommand(SETTINGS), CommitCommand(), ConfigureCommand(SETTINGS))
    assert take_all(tape) == [bytes(SECOND), ConfigureCommand(SETTINGS), CommitCommand(), ConfigureCommand(SETTINGS)]


def test_a_commit_without_an_answer_is_repeated_and_one_with_an_answer_is_not() -> None:
    tape = create_buffer(
        b"\1" * SECOND, CommitCommand(), b"\2" * SECOND, CommitCommand(), settings=SessionSettings(endpointing=None)
    )
    take_all(tape)
    tape.record_commit(1.0)
    tape.rewind()
    assert take_all(tape) == [b"\2" * SECOND, CommitCommand()]
    tape.record_commit(2.0)
    tape.rewind()
    assert take_all(tape) == []


def test_a_commit_in_the_middle_of_a_sample_is_answered_too() -> None:
    tape = create_buffer(b"\1" * (SECOND + 1), CommitCommand())
    take_all(tape)
    tape.record_commit(1.0)
    tape.rewind()
    assert take_all(tape) == [b"\1"]


@pytest.mark.parametrize("late", [0.3, 4.0])
def test_an_end_by_a_pause_does_not_answer_the_commit_behind_it(late: float) -> None:
    tape = create_buffer(b"\1" * int(SECOND * (1.0 + late)), CommitCommand())
    take_all(tape)
    tape.record_commit(1.0)
    tape.rewind()
    assert take_all(tape)[-1] == CommitCommand()


def test_a_refused_commit_is_not_repeated() -> None:
    tape = create_buffer(CommitCommand(), b"\1" * SECOND)
    take_all(tape)
    tape.record_refusal()
    tape.rewind()
    assert join_audio(take_all(tape)) == b"\1" * SECOND


def test_what_was_cleared_is_not_said_again() -> None:
    tape = create_buffer(b"\1" * SECOND, ClearCommand(), b"\2" * SECOND)
    take_all(tape)
    tape.record_clear()
    tape.rewind()
    assert take_all(tape) == [b"\2" * SECOND]


def test_finish_is_repeated() -> None:
    tape = create_buffer(b"\1" * SECOND, FinishCommand())
    take_all(tape)
    tape.record_commit(1.0)
    create_replay(tape, UtteranceCommitted(1, 0.0, 1.0))
    assert take_all(tape) == [FinishCommand()]


def test_no_more_is_kept_than_allowed_however_small_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tape_module, "SILENCE_KEPT_S", 2.0)
    tape = ReplayBuffer(SETTINGS)
    for _ in range(5 * SECOND // 7):
        tape.feed(b"1234567")
        take_all(tape)
        assert len(tape._audio) <= 2 * SECOND + 2
    assert 2.9 < tape.kept_since < 3.1


def test_more_is_kept_while_it_holds_speech(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tape_module, "SILENCE_KEPT_S", 1.0)
    monkeypatch.setattr(tape_module, "SPEECH_KEPT_S", 3.0)
    tape = ReplayBuffer(SETTINGS)
    tape.has_speech = True
    tape.feed(bytes(5 * SECOND))
    take_all(tape)
    assert tape.kept_since == pytest.approx(2.0)
    tape.has_speech = False
    tape.feed(bytes(2))
    take_all(tape)
    assert tape.kept_since == pytest.approx(4.0, abs=0.001)
    manual = create_buffer(bytes(5 * SECOND), settings=SessionSettings(endpointing=None))
    take_all(manual)
    assert manual.kept_since == pytest.approx(2.0)


def test_what_no_process_was_sent_is_kept_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tape_module, "SILENCE_KEPT_S", 1.0)
    tape = create_buffer(bytes(5 * SECOND))
    assert tape.kept_since == 0.0
    assert len(join_audio(take_all(tape))) == 5 * SECOND


def test_of_a_container_nothing_is_kept() -> None:
    tape = create_buffer(b"webm" * 1000, settings=SessionSettings(format=AudioFormat(AudioEncoding.CONTAINER)))
    assert tape.is_container
    assert join_audio(take_all(tape)) == b"webm" * 1000
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
                take_all(tape)
            if dice.random() < 0.3:
                tape.record_commit(dice.uniform(0, len(stream) / SECOND))
                tape.drop_before(tape.last_commit)
            if dice.random() < 0.3:
                begins = round(create_replay(tape).time_map[-1][1] * SECOND)
                assert begins % 2 == 0
                assert join_audio(take_all(tape)) == stream[begins:]


def test_a_session_of_silence_needs_no_process_to_be_ended() -> None:
    tape = create_buffer(bytes(SECOND))
    assert tape.has_pending
    take_all(tape)
    assert not tape.has_pending
    assert create_buffer(FinishCommand()).has_pending is False
    manual = create_buffer(bytes(SECOND), settings=SessionSettings(endpointing=None))
    take_all(manual)
    assert manual.has_pending
    manual.record_commit(1.0)
    assert not manual.has_pending
