"""The embedded model: real weights, real speech."""

from __future__ import annotations

import math
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from eardrum.engines.base import EngineResult, Window
from eardrum.engines.moonshine import DECODER, ENCODER, PADDING, TOKENIZER, DecoderRow, Moonshine, _read_tokenizer
from eardrum.errors import ModelLoadError
from eardrum.gateway.models.inventory import EMBEDDED_SHA256
from eardrum.transcription import SAMPLE_RATE, TranscriptionRequest
from tests.recordings import SPEECH_TEXT, create_noise, create_silence, load_announcements, load_speech

pytestmark = pytest.mark.slow


SENTENCE = "And Mr. John Dashwood had then leisure to consider how much there might be prudently in his power to do for them."


def create_window(samples: np.ndarray, **request: object) -> Window:
    return Window(samples, 0.0, 1.0, (0.1, len(samples) / SAMPLE_RATE), TranscriptionRequest(**request))


def load_sentence() -> np.ndarray:
    return load_speech()[: int(7.6 * SAMPLE_RATE)]


@pytest.fixture(scope="module")
def windows() -> list[Window]:
    """Windows of very different lengths."""
    recordings = {name: samples for name, samples, _ in load_announcements()}
    return [
        create_window(recordings["vm-nonumber"]),
        create_window(load_sentence()),
        create_window(recordings["conf-onlyone"]),
        create_window(create_silence(0.05)),
    ]


@pytest.fixture(scope="module")
def single_results(moonshine: Moonshine, windows: list[Window]) -> list[EngineResult]:
    return [moonshine.transcribe([w])[0] for w in windows]


def test_real_speech(single_results: list[EngineResult]) -> None:
    (segment,) = single_results[1].segments
    assert segment.text == SENTENCE
    assert SPEECH_TEXT.startswith(SENTENCE)
    assert single_results[1].language == "en"
    assert (segment.start, segment.end) == (0.1, pytest.approx(7.6))
    assert segment.avg_logprob > -0.25
    assert 1.0 < segment.compression_ratio < 2.0
    assert segment.tokens
    assert segment.token_logprobs == []


def test_a_window_decoded_between_two_steps_changes_no_text(
    moonshine: Moonshine, windows: list[Window], single_results: list[EngineResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    between: list[EngineResult] = []
    steps = 0

    def decode_another() -> None:
        nonlocal steps
        steps += 1
        if steps == 5:
            between.extend(moonshine.transcribe([windows[0]]))

    monkeypatch.setattr(moonshine, "before_step", decode_another)
    (sentence,) = moonshine.transcribe([windows[1]])
    assert steps > len(sentence.segments[0].tokens), "before every step, and before those of the other window"
    assert sentence.segments[0].tokens == single_results[1].segments[0].tokens
    assert between[0].segments[0].tokens == single_results[0].segments[0].tokens


def test_rows_of_a_batch_of_copies_equal_the_single_row(
    moonshine: Moonshine, windows: list[Window], single_results: list[EngineResult]
) -> None:
    for together in moonshine.transcribe([windows[0]] * 3):
        assert [s.text for s in together.segments] == [s.text for s in single_results[0].segments]
        assert together.segments[0].tokens == single_results[0].segments[0].tokens
        assert together.segments[0].avg_logprob == pytest.approx(single_results[0].segments[0].avg_logprob, abs=1e-3)


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0]])
def test_rows_of_a_mixed_batch_are_those_of_their_windows(
    moonshine: Moonshine, windows: list[Window], single_results: list[EngineResult], order: list[int]
) -> None:
    """Nearly: the scales of int8 span the batch, so a row's neighbours may tip a doubtful word."""
    batch = moonshine.transcribe([windows[i] for i in order])
    assert len(batch) == len(order)
    for i, together in zip(order, batch, strict=True):
        if windows[i].seconds < 1:
            continue
        for one, other in zip(together.segments, single_results[i].segments, strict=True):
            assert SequenceMatcher(None, one.text, other.text).ratio() > 0.75
            assert one.avg_logprob == pytest.approx(other.avg_logprob, abs=0.2)


def test_only_a_windows_own_audio_is_attended_to(moonshine: Moonshine, windows: list[Window]) -> None:
    _, mask = moonshine._encode([windows[0].audio, windows[1].audio])
    assert mask.sum(axis=1).tolist() == [len(w.audio) + 2 * PADDING for w in windows[:2]]


def test_phone_speech(windows: list[Window], single_results: list[EngineResult]) -> None:
    texts = {name: text for name, _, text in load_announcements()}

    def words(text: str) -> list[str]:
        return "".join(c for c in text.lower() if c.isalnum() or c == " ").split()

    for number, name in ((0, "vm-nonumber"), (2, "conf-onlyone")):
        assert words(single_results[number].segments[0].text) == words(texts[name])


def test_a_tiny_window_works(moonshine: Moonshine, single_results: list[EngineResult]) -> None:
    assert all(len(segment.tokens) <= 1 for segment in single_results[3].segments)
    assert moonshine.transcribe([create_window(create_noise(0.001))])[0].language == "en"


def test_confidence_is_high_on_speech_and_low_on_noise(moonshine: Moonshine, single_results: list[EngineResult]) -> None:
    heard = moonshine.transcribe([create_window(create_noise(2.0, 0.2))])[0]
    unsure = min([segment.avg_logprob for segment in heard.segments], default=-9.0)
    assert math.exp(single_results[1].segments[0].avg_logprob) > 0.8
    assert unsure < single_results[1].segments[0].avg_logprob - 0.2


def test_tokens_with_their_probabilities(moonshine: Moonshine, windows: list[Window]) -> None:
    asked = Window(windows[2].audio, 0.0, 1.0, (0.0, 1.0), TranscriptionRequest(logprobs=True))
    (segment,) = moonshine.transcribe([asked])[0].segments
    assert len(segment.token_logprobs) == len(segment.tokens)
    assert "".join(token.text for token in segment.token_logprobs).strip() == segment.text
    assert all(-20 < token.logprob <= 1e-5 for token in segment.token_logprobs)


def test_a_window_nobody_wants_is_given_up(moonshine: Moonshine) -> None:
    gone, stays = create_window(load_sentence()), create_window(load_sentence())
    gone.cancelled = True
    given_up, heard = moonshine.transcribe([gone, stays])
    assert sum(len(segment.tokens) for segment in given_up.segments) <= 1
    assert heard.segments[0].text == SENTENCE


def test_what_speaks_faster_than_people_is_cut_off() -> None:
    row = DecoderRow(create_window(create_silence(1)), limit=3)
    for token in (10, 11, 12):
        assert not row.ended
        row.append_token(token, -1.0)
    assert row.ended
    assert (row.tokens, row.avg_logprob) == ([10, 11, 12], -1.0)


def copy_model(weights: Path, folder: Path) -> Path:
    """The model in a folder of its own; each file a link until it is replaced."""
    folder.mkdir()
    for name in (ENCODER, DECODER, TOKENIZER):
        (folder / name).symlink_to(weights / name)
    return folder


def replace_file(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


def get_load_error(source: Path, **options: object) -> str:
    with pytest.raises(ModelLoadError) as caught:
        Moonshine.load(source, Moonshine.Options(**options))
    return caught.value.message


@pytest.mark.parametrize("name", [ENCODER, DECODER, TOKENIZER])
def test_a_missing_file_is_named(weights: Path, tmp_path: Path, name: str) -> None:
    source = copy_model(weights, tmp_path / "m")
    (source / name).unlink()
    assert name in get_load_error(source)


@pytest.mark.parametrize("name", [ENCODER, TOKENIZER])
def test_a_flipped_byte_is_noticed_by_the_files_sum(weights: Path, tmp_path: Path, name: str) -> None:
    source = copy_model(weights, tmp_path / "m")
    data = bytearray((weights / name).read_bytes())
    data[len(data) // 2] ^= 1
    replace_file(source / name, bytes(data))
    message = get_load_error(source, sha256=EMBEDDED_SHA256)
    assert name in message
    assert "damaged" in message


@pytest.mark.parametrize("name", [ENCODER, DECODER])
@pytest.mark.parametrize("keep", [0, 1000])
def test_a_truncated_graph_is_named(weights: Path, tmp_path: Path, name: str, keep: int) -> None:
    source = copy_model(weights, tmp_path / "m")
    replace_file(source / name, (weights / name).read_bytes()[:keep])
    assert name in get_load_error(source)


TOKENS = b"\x00" + b"\x01a" + bytes([128 + 300 % 128, 300 // 128]) + b"d" * 300 + b"\x02bc" + b"\xac\x02" + b"e" * 300


def test_the_tokenizer_is_read(tmp_path: Path) -> None:
    path = tmp_path / TOKENIZER
    path.write_bytes(TOKENS)
    assert _read_tokenizer(path) == [b"", b"a", b"d" * 300, b"bc", b"e" * 300]
    path.write_bytes(TOKENS[:-301])
    with pytest.raises(ModelLoadError, match=TOKENIZER):
        _read_tokenizer(path)


@pytest.mark.parametrize("lost", [1, 2, 200])
def test_a_token_that_breaks_off_is_damage(tmp_path: Path, lost: int) -> None:
    path = tmp_path / TOKENIZER
    path.write_bytes(TOKENS[:-lost])
    with pytest.raises(ModelLoadError, match=TOKENIZER):
        _read_tokenizer(path)


def test_a_tokenizer_that_lacks_tokens_is_named(weights: Path, tmp_path: Path) -> None:
    source = copy_model(weights, tmp_path / "m")
    replace_file(source / TOKENIZER, TOKENS)
    assert TOKENIZER in get_load_error(source)


def test_wishes_that_cannot_be_met_are_refused(weights: Path) -> None:
    assert "compute_type 'int8'" in get_load_error(weights, compute_type="int8")
    assert "CUDA" in get_load_error(weights, device="cuda")
    with pytest.raises(ValidationError):
        Moonshine.Options(beam_size=5)  # type: ignore[call-arg]


@pytest.mark.slow
def test_the_language_is_an_options_or_the_folders(weights: Path, tmp_path: Path) -> None:
    for folder, options, language in (("tiny-es", {}, "es"), ("tiny", {"language": "uk"}, "uk"), ("plain", {}, "en")):
        engine = Moonshine.load(copy_model(weights, tmp_path / folder), Moonshine.Options(**options))
        assert engine.capabilities.languages == (language,)
        assert Moonshine.capabilities.languages == ("en",), "a loaded model changed the class"
