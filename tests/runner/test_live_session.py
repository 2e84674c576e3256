"""The live session, without a model: what is heard, told and decoded."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eardrum.engines.base import EngineResult
from eardrum.errors import EmptyCommitError
from eardrum.live import (
    ClearCommand,
    CommandRefused,
    CommitCommand,
    ConfigureCommand,
    EndpointingSettings,
    FinalTranscript,
    PartialTranscript,
    SessionSettings,
    SpeechIdle,
    SpeechStarted,
    SpeechStopped,
    UtteranceCleared,
    UtteranceCommitted,
    UtteranceFailed,
)
from eardrum.runner.live import session as session_module
from eardrum.runner.vad import FRAME_SAMPLES
from eardrum.transcription import Capabilities, Priority, TranscriptionRequest
from tests.generated_cases import count_cases
from tests.runner.live_simulation import CAN, SessionSimulation, check_promises, create_stream, spell_numbers

MANUAL = SessionSettings(endpointing=None)
SECOND = 16_000 / FRAME_SAMPLES

parts = st.lists(st.tuples(st.integers(1, 60), st.floats(0.03, 3.0)), min_size=1, max_size=6)


def spell_words(first: int, last: int) -> str:
    return " ".join(spell_numbers(range(first, last + 1)))


def test_two_utterances_with_a_pause_between_them() -> None:
    play = SessionSimulation().play_stream(create_stream((0, 1.0), (4, 1.0), (3, 1.0)))
    play.finish_session()
    told = [(type(e), e.utterance) for e in play.events if not isinstance(e, PartialTranscript) and hasattr(e, "utterance")]
    kinds = (SpeechStarted, SpeechStopped, UtteranceCommitted, FinalTranscript)
    assert told == [(kind, number) for number in (1, 2) for kind in kinds]
    assert [final.text for final in play.list_events(FinalTranscript)] == [spell_words(1, 4), spell_words(5, 7)]
    assert play.list_events(SpeechStarted)[0].at == pytest.approx(0.7, abs=0.05)  # the prefix before second 1
    assert play.list_events(SpeechStopped)[0].at == pytest.approx(2.15, abs=0.1)
    assert play.events[-1].duration == pytest.approx(5.0, abs=0.1)


def test_speech_is_told_at_once_and_its_end_after_the_pause() -> None:
    play = SessionSimulation().play_stream(create_stream((0, 1.0)))
    play.play_stream(create_stream((1, 0.0)))
    assert len(play.list_events(SpeechStarted)) == 1
    play.play_stream(create_stream((0, 0.4)))
    assert not play.list_events(UtteranceCommitted)
    play.play_stream(create_stream((0, 0.2)))
    assert len(play.list_events(UtteranceCommitted)) == 1


def test_a_click_is_not_speech() -> None:
    play = SessionSimulation()
    for _ in range(20):
        click = create_stream((0, 0.5))
        click.probs[4:6] = 0.95
        play.play_stream(click)
    play.finish_session()
    assert not play.decodes
    assert len(play.events) == 1


def test_the_final_is_decoded_at_the_beginning_of_the_pause_and_is_there_at_its_end() -> None:
    play = SessionSimulation(settings=SessionSettings(partials=False)).play_stream(create_stream((0, 1.0), (4, 0.3)))
    assert [decode.final for decode in play.decodes] == [False]
    play.play_stream(create_stream((0, 0.3)))
    assert len(play.decodes) == 1
    assert play.list_events(FinalTranscript)[0].text == spell_words(1, 4)


def test_partials_promise_words_that_stay() -> None:
    play = SessionSimulation(delay=3).play_stream(create_stream((0, 0.5), (20, 1.0)))
    play.finish_session()
    check_promises(play.events)
    partials = play.list_events(PartialTranscript)
    assert any(partial.stable for partial in partials)
    assert partials[0].end < 1.5
    assert play.text == spell_words(1, 20)


def test_without_partials_no_text_is_told_before_the_final() -> None:
    play = SessionSimulation(settings=SessionSettings(partials=False)).play_stream(create_stream((20, 0.3), (20, 1.0)))
    play.finish_session()
    assert not play.list_events(PartialTranscript)
    assert len(play.decodes) < 5


def test_what_partials_have_promised_stands_in_the_final_however_it_differs() -> None:
    def mishear(numbers: list[int], final: bool) -> list[str]:
        return [("W" if len(numbers) < 12 and number == 2 else "w") + str(number) for number in numbers]

    play = SessionSimulation(mishear=mishear).play_stream(create_stream((14, 1.0)))
    play.finish_session()
    check_promises(play.events)
    assert play.text == f"w1 W2 {spell_words(3, 14)}"
    assert "".join(segment.text for segment in play.list_events(FinalTranscript)[0].segments) == play.text


def test_speech_without_a_pause_is_decoded_in_windows_and_nothing_of_it_is_lost() -> None:
    play = SessionSimulation(delay=2).play_stream(create_stream((400, 0.0)))
    assert len(play.finals) >= 10
    assert play.session.pending_windows <= 1
    play.finish_session()
    check_promises(play.events)
    assert all(window.seconds <= 10.0 for window in play.finals)
    assert play.text == spell_words(1, 400)


@pytest.mark.parametrize("can", [CAN, Capabilities(max_window_s=30.0, fixed_window=True), Capabilities(max_window_s=3.0)])
@pytest.mark.parametrize("silence_s", [0.2, 0.5, 1.6, 2.0, 5.0])
def test_only_the_clients_own_pause_ends_what_somebody_says(silence_s: float, can: Capabilities) -> None:
    short, long = silence_s - 0.1, silence_s + 0.1
    turn = ((9, short), (30, short), (1, short), (60, short), (2, long))
    play = SessionSimulation(settings=SessionSettings(endpointing=EndpointingSettings(silence_s=silence_s)), can=can).play_stream(
        create_stream((0, 1.0), *turn, *turn)
    )
    assert [final.text for final in play.list_events(FinalTranscript)] == [spell_words(1, 102), spell_words(103, 204)]
    ends = [[type(event) for event in play.list_events(kind)] for kind in (SpeechStarted, SpeechStopped, UtteranceCommitted)]
    assert [len(kind) for kind in ends] == [2, 2, 2]
    stopped = 1 + 102 * 0.288 + 4 * short
    assert play.list_events(SpeechStopped)[0].at == pytest.approx(stopped, abs=0.15)
    assert play.list_events(UtteranceCommitted)[0].end == pytest.approx(stopped + min(0.25, silence_s), abs=0.15)
    assert play.list_events(PartialTranscript), "text comes while somebody speaks"
    play.finish_session()
    check_promises(play.events)


def test_at_the_end_of_a_long_utterance_only_its_last_window_is_left_to_decode() -> None:
    play = SessionSimulation(settings=SessionSettings(endpointing=EndpointingSettings(silence_s=2.0))).play_stream(
        create_stream(*[(20, 1.0)] * 5, (5, 0.0))
    )
    assert len(play.finals) == 5
    assert not play.list_events(FinalTranscript)
    play.play_stream(create_stream((0, 2.1)))
    assert len(play.finals) == 6
    assert play.finals[-1].seconds < 2.5


@pytest.mark.parametrize("prefix_s", [0.0, 0.3])
def test_a_word_behind_a_cut_is_heard_whole_however_short_the_prefix(prefix_s: float) -> None:
    rule = EndpointingSettings(silence_s=2.0, prefix_s=prefix_s)
    play = SessionSimulation(settings=SessionSettings(endpointing=rule)).play_stream(create_stream((20, 1.0), (3, 2.5)))
    first, second = play.finals
    assert second.speech_span[0] >= 0.3
    assert second.start > first.start + first.seconds


def test_a_click_keeps_somebody_speaking_and_is_not_decoded() -> None:
    play = SessionSimulation(settings=SessionSettings(endpointing=EndpointingSettings(silence_s=1.5))).play_stream(
        create_stream((9, 1.0))
    )
    click = create_stream((0, 1.0))
    click.probs[3] = 0.9
    play.play_stream(click)
    assert not play.list_events(UtteranceCommitted)
    play.play_stream(create_stream((0, 0.8)))
    assert [final.text for final in play.list_events(FinalTranscript)] == [spell_words(1, 9)]
    assert len(play.finals) == 1


def test_the_longer_a_window_the_shorter_the_pause_that_ends_it() -> None:
    for count, expected in ((20, 1), (30, 2)):
        play = SessionSimulation().play_stream(create_stream((count, 0.3), (2, 1.0)))
        assert len(play.finals) == expected
        assert len(play.list_events(UtteranceCommitted)) == 1


@pytest.mark.parametrize("ends", [None, EndpointingSettings()])
def test_ten_minutes_take_no_more_memory_than_one(ends: EndpointingSettings | None) -> None:
    for part in (create_stream((0, 60.0)), create_stream((234, 0.0))):
        play = SessionSimulation(settings=SessionSettings(endpointing=ends))
        sizes = []
        for _ in range(10):
            play.play_stream(part, split=100)
            sizes.append(play.session._endpointer._frames._samples.nbytes)
        assert max(sizes) < 3 << 20, "all of it is 38 MB"
        assert play.session.pending_windows == 0


def test_silence_is_not_decoded() -> None:
    play = SessionSimulation(settings=MANUAL).play_stream(create_stream((3, 600.0), (3, 0.1)), split=50)
    play.send_command(CommitCommand())
    play.finish_session()
    assert sum(decode.window.seconds for decode in play.decodes) < 8
    assert play.text == spell_words(1, 6)


# By hand


def test_a_commit_ends_the_utterance() -> None:
    play = SessionSimulation(settings=MANUAL).play_stream(create_stream((3, 0.5), (3, 0.0))).send_command(CommitCommand())
    play.play_stream(create_stream((2, 0.2))).send_command(CommitCommand())
    play.finish_session()
    assert [final.text for final in play.list_events(FinalTranscript)] == [spell_words(1, 6), spell_words(1, 2)]
    assert not play.list_events(SpeechStarted)
    assert play.list_events(UtteranceCommitted)[0].start == 0.0
    assert play.list_events(UtteranceCommitted)[1].start == play.list_events(UtteranceCommitted)[0].end


def test_a_commit_of_a_tenth_of_a_second_is_none_of_nothing() -> None:
    play = (
        SessionSimulation(settings=MANUAL).play_stream(create_stream((0, 0.0995))).send_command(CommitCommand())
    )  # 24 kHz at 16, less what the resampler holds back
    play.finish_session()
    assert not play.list_events(CommandRefused)
    assert [final.text for final in play.list_events(FinalTranscript)] == [""]


def test_a_commit_of_nothing_is_refused() -> None:
    play = (
        SessionSimulation(settings=MANUAL)
        .send_command(CommitCommand())
        .play_stream(create_stream((0, 0.07)))
        .send_command(CommitCommand())
    )
    assert [type(event.error) for event in play.list_events(CommandRefused)] == [EmptyCommitError] * 2
    play.play_stream(create_stream((2, 0.0))).send_command(CommitCommand()).send_command(CommitCommand())
    play.finish_session()
    assert len(play.list_events(CommandRefused)) == 3
    assert [final.text for final in play.list_events(FinalTranscript)] == [spell_words(1, 2)]


def test_what_is_committed_without_speech_gives_an_empty_final() -> None:
    play = SessionSimulation(settings=MANUAL).play_stream(create_stream((0, 2.0))).send_command(CommitCommand())
    assert [(final.text, final.segments) for final in play.list_events(FinalTranscript)] == [("", ())]
    assert not play.decodes


def test_samples_behind_the_last_whole_frame_belong_to_what_is_committed() -> None:
    play = (
        SessionSimulation(settings=MANUAL)
        .play_stream(create_stream((3, 0.0)))
        .send_command(CommitCommand(), np.full(300, 3, np.float32))
    )
    assert len(play.finals[0].audio) == 3 * 9 * FRAME_SAMPLES + 300
    assert play.list_events(UtteranceCommitted)[0].end == pytest.approx((3 * 9 * FRAME_SAMPLES + 300) / 16_000)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        pytest.param(MANUAL, [(20, 1.0)] * 12, id="commits"),
        pytest.param(MANUAL, [(240, 1.0)], id="commits, without a pause"),
        pytest.param(SessionSettings(endpointing=EndpointingSettings(silence_s=3.0)), [(20, 1.0)] * 12, id="pauses"),
        pytest.param(SessionSettings(), [(240, 1.0)], id="pauses, without one"),
    ],
)
def test_an_endless_utterance_is_ended_between_two_windows(
    monkeypatch: pytest.MonkeyPatch, settings: SessionSettings, parts: list[tuple[int, float]]
) -> None:
    monkeypatch.setattr(session_module, "MAX_UTTERANCE_S", 15.0)
    play = SessionSimulation(settings=settings, delay=3).play_stream(create_stream(*parts))
    play.finish_session()
    check_promises(play.events)
    assert play.text == spell_words(1, 240)
    finals = play.list_events(FinalTranscript)
    assert len(finals) > 2
    assert all(after.start >= final.end for final, after in pairwise(finals))
    longest = 15.0 + CAN.max_window_s + 12 * 1.0  # with its pauses
    assert max(final.end - final.start for final in finals) <= longest
    announced = settings is not MANUAL
    for kind in (SpeechStarted, SpeechStopped):
        assert [event.utterance for event in play.list_events(kind)] == [final.utterance for final in finals] * announced


def test_by_hand_too_only_the_last_window_is_left_to_decode_at_the_end() -> None:
    play = SessionSimulation(settings=MANUAL).play_stream(create_stream(*[(20, 1.0)] * 10, (5, 0.0)))
    before = len([decode for decode in play.decodes if decode.final])
    play.send_command(CommitCommand())
    assert play.finals[-1].seconds < 2.5
    assert len([decode for decode in play.decodes if decode.final]) <= before + 1
    play.finish_session()
    check_promises(play.events)
    assert [final.text for final in play.list_events(FinalTranscript)] == [spell_words(1, 205)]


def test_a_commit_ends_an_utterance_that_would_end_by_itself() -> None:
    play = SessionSimulation().send_command(CommitCommand())
    assert len(play.list_events(CommandRefused)) == 1
    play.play_stream(create_stream((0, 1.0), (4, 0.0))).send_command(CommitCommand())
    play.play_stream(create_stream((0, 1.0)))
    play.finish_session()
    assert [final.text for final in play.list_events(FinalTranscript)] == [spell_words(1, 4)]
    assert len(play.list_events(SpeechStopped)) == 1


def test_a_commit_between_utterances_gives_an_empty_final_and_no_speech() -> None:
    """Clients that listen for pauses themselves commit when they hear one, whatever was committed by itself before."""
    play = (
        SessionSimulation()
        .play_stream(create_stream((0, 1.0)))
        .send_command(CommitCommand())
        .play_stream(create_stream((4, 1.0)))
        .send_command(CommitCommand())
        .send_command(CommitCommand())
    )
    assert [final.text for final in play.list_events(FinalTranscript)] == ["", spell_words(1, 4), ""]
    assert len(play.list_events(SpeechStarted)) == len(play.list_events(SpeechStopped)) == 1
    assert len(play.list_events(CommandRefused)) == 1
    play.play_stream(create_stream((3, 1.0)))
    play.finish_session()
    check_promises(play.events)
    assert [final.text for final in play.list_events(FinalTranscript)][3:] == [spell_words(1, 3)]


def test_a_commit_in_the_first_moment_of_a_word_keeps_it() -> None:
    play = SessionSimulation().play_stream(create_stream((0, 1.0)))
    begun = create_stream((1, 0.0))
    begun.samples, begun.probs = begun.samples[: 2 * FRAME_SAMPLES], begun.probs[:2]
    play.play_stream(begun).send_command(CommitCommand())
    assert play.finals[0].audio[-2 * FRAME_SAMPLES :].min() == 1


# Commands


def test_clear_forgets_what_was_said() -> None:
    for mode in (MANUAL, SessionSettings()):
        play = (
            SessionSimulation(settings=mode, delay=5)
            .play_stream(create_stream((20, 1.0) if mode is MANUAL else (20, 0.1)))
            .send_command(ClearCommand())
        )
        play.play_stream(create_stream((0, 0.5), (3, 1.0))).send_command(CommitCommand()) if mode is MANUAL else play.play_stream(
            create_stream((0, 0.5), (3, 1.0))
        )
        play.finish_session()
        check_promises(play.events)
        assert play.list_events(UtteranceCleared)[0].utterance == 1
        assert [final.text for final in play.list_events(FinalTranscript)] == [spell_words(1, 3)]
        assert play.list_events(FinalTranscript)[0].utterance == 2


def test_clear_of_nothing_clears_nothing() -> None:
    assert SessionSimulation().send_command(ClearCommand()).list_events(UtteranceCleared)[0].utterance == 0


def test_other_settings_hold_from_the_next_utterance_on() -> None:
    prompted = SessionSettings(request=TranscriptionRequest(prompt="names", priority=Priority.LIVE))
    play = (
        SessionSimulation()
        .play_stream(create_stream((3, 0.0)))
        .send_command(ConfigureCommand(prompted))
        .play_stream(create_stream((3, 1.0), (3, 1.0)))
    )
    play.finish_session()
    assert [window.request.prompt for window in play.finals] == ["", "names"]


def test_endpointing_can_be_switched_off_and_on() -> None:
    play = (
        SessionSimulation()
        .play_stream(create_stream((3, 0.0)))
        .send_command(ConfigureCommand(MANUAL))
        .play_stream(create_stream((0, 2.0), (3, 1.0)))
    )
    assert not play.list_events(UtteranceCommitted)
    play.send_command(CommitCommand()).play_stream(create_stream((2, 0.0))).send_command(
        ConfigureCommand(SessionSettings())
    ).play_stream(create_stream((0, 1.0), (1, 1.0)))
    play.finish_session()
    check_promises(play.events)
    assert [final.text for final in play.list_events(FinalTranscript)] == ["w1 w2 w3 w1 w2 w3", "w1 w2", "w1"]


def test_a_long_silence_is_told_once_after_each_utterance() -> None:
    play = SessionSimulation(settings=SessionSettings(endpointing=EndpointingSettings(idle_s=2.0))).play_stream(
        create_stream((0, 5.0))
    )
    assert not play.list_events(SpeechIdle)
    play.play_stream(create_stream((3, 5.0), (3, 1.0), (3, 5.0)))
    assert len(play.list_events(SpeechIdle)) == 2
    assert play.list_events(SpeechIdle)[0].at == pytest.approx(5 + 3 * 0.288 + 2.0, abs=0.1)


def test_a_window_on_which_the_model_fails_costs_its_utterance_only() -> None:
    play = SessionSimulation(settings=SessionSettings(partials=False), fails=frozenset({1, 2})).play_stream(
        create_stream((3, 1.0), (3, 1.0))
    )
    play.finish_session()
    check_promises(play.events)
    assert [type(event) for event in play.events if isinstance(event, FinalTranscript | UtteranceFailed)] == [
        UtteranceFailed,
        FinalTranscript,
    ]


# Cost


def test_an_engine_that_fails_is_not_asked_again_and_again() -> None:
    play = SessionSimulation(can=Capabilities(max_window_s=60.0), fails=frozenset(range(100))).play_stream(
        create_stream((100, 0.0))
    )
    assert 3 <= len(play.decodes) <= 6
    play.finish_session()
    check_promises(play.events)
    assert len(play.list_events(UtteranceFailed)) == 1


def test_the_end_is_told_once_whatever_the_engine_says_later() -> None:
    play = SessionSimulation(delay=1000).play_stream(create_stream((10, 0.0)))
    attempt = play.decodes[0].id
    play.finish_session()
    assert play.session.handle_result(attempt, EngineResult(), 0.1, 0.0) == []


def test_one_partial_at_a_time_and_none_while_a_final_waits() -> None:
    play = SessionSimulation(delay=60).play_stream(create_stream(*[(30, 0.6)] * 6))
    play.finish_session()
    check_promises(play.events)
    assert play.most_waiting <= 3
    assert play.events[-1].skipped > 0


def test_partials_have_a_bounded_share_of_the_engine_however_long_somebody_speaks() -> None:
    play = SessionSimulation(can=Capabilities(max_window_s=60.0))
    costs = []
    slow = play.session.handle_result

    def decoded(number: int, result, decode_s: float, queue_s: float) -> list:
        (window,) = [decode.window for decode in play.decodes if decode.id == number]
        costs.append((window.start + window.seconds, 0.1 * window.seconds))
        return slow(number, result, 0.1 * window.seconds, queue_s)

    play.session.handle_result = decoded  # type: ignore[method-assign]
    play.play_stream(create_stream((160, 1.0)))
    for until in (10, 20, 40):
        assert sum(cost for at, cost in costs if at < until) / until < 0.3


def test_what_is_stable_is_not_decoded_again_where_words_have_times() -> None:
    play = SessionSimulation(can=Capabilities(max_window_s=60.0, words=True)).play_stream(create_stream((150, 1.0)))
    play.finish_session()
    check_promises(play.events)
    assert play.text == spell_words(1, 150)
    partials = [decode.window.seconds for decode in play.decodes if not decode.final]
    assert max(partials[:-1]) < 7
    assert play.list_events(FinalTranscript)[0].segments


def test_word_times_of_stable_text_are_told_where_they_are_wanted() -> None:
    wished = SessionSettings(request=TranscriptionRequest(words=True, priority=Priority.LIVE))
    play = SessionSimulation(settings=wished, can=Capabilities(max_window_s=60.0, words=True)).play_stream(
        create_stream((0, 1.0), (50, 1.0))
    )
    play.finish_session()
    for partial in play.list_events(PartialTranscript):
        assert [word.word for word in partial.words] == partial.stable.split()
    assert play.list_events(PartialTranscript)[-1].words[4].start == pytest.approx(1 + 4 * 0.288, abs=0.05)
    assert len(play.list_events(FinalTranscript)[0].segments[0].words) == 50


# Properties

models = st.sampled_from(
    [
        CAN,
        Capabilities(max_window_s=30.0, fixed_window=True),
        Capabilities(max_window_s=30.0, words=True),
        Capabilities(max_window_s=3.0),
    ]
)
modes = st.sampled_from(
    [
        *(SessionSettings(), MANUAL, SessionSettings(partials=False)),
        *(SessionSettings(endpointing=EndpointingSettings(silence_s=seconds)) for seconds in (0.2, 2.0)),
    ]
)


@settings(deadline=None, max_examples=count_cases(40))
@given(parts, modes, models, st.integers(0, 40), st.integers(0, 9), st.lists(st.integers(1, 90), max_size=20))
def test_every_word_is_in_the_finals_once(spoken_parts, mode, can, delay, seed, split) -> None:
    play = SessionSimulation(settings=mode, can=can, delay=delay, seed=seed)
    whole = create_stream(*spoken_parts)
    play.play_stream(whole, split).finish_session()
    check_promises(play.events)
    assert play.text == spell_words(1, whole.said)


@settings(deadline=None, max_examples=count_cases(40))
@given(parts, modes, st.lists(st.integers(1, 90), max_size=40))
def test_finals_do_not_depend_on_how_the_audio_is_portioned(spoken_parts, mode, split) -> None:
    outcomes = []
    for portions in (1, split):
        play = SessionSimulation(settings=mode).play_stream(create_stream(*spoken_parts), portions)
        play.finish_session()
        outcomes.append([(window.start, len(window.audio)) for window in play.finals])
        outcomes.append(play.list_events(FinalTranscript))
    assert outcomes[:2] == outcomes[2:]


@pytest.mark.slow
@settings(deadline=None, max_examples=count_cases(40))
@given(parts, modes, models, st.integers(0, 40), st.randoms())
def test_promises_are_kept_whatever_the_model_says(spoken_parts, mode, can, delay, chance) -> None:
    def mishear(numbers: list[int], final: bool) -> list[str]:
        said = [chance.choice(["w", "w", "w", "v", "W", "w x"]) + str(number) for number in numbers if chance.random() < 0.9]
        return " ".join(said).split()

    play = SessionSimulation(settings=mode, can=can, delay=delay, mishear=mishear).play_stream(create_stream(*spoken_parts))
    play.finish_session()
    check_promises(play.events)
    for final in play.list_events(FinalTranscript):
        assert " ".join(segment.text for segment in final.segments) == final.text
