"""A real Whisper through the server: words, languages and times of real speech in four languages, short and long."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import jiwer
import numpy as np
import pytest
import requests
from faster_whisper import WhisperModel
from whisper_normalizer.basic import BasicTextNormalizer
from whisper_normalizer.english import EnglishTextNormalizer

from eardrum.engines.base import Window
from eardrum.engines.faster_whisper import FasterWhisper
from eardrum.engines.shared.ctranslate2_whisper import CTranslate2Whisper
from eardrum.transcription import TranscriptionRequest
from tests.conftest import ServerUnderTest, run_server, wait_for
from tests.models import build
from tests.recordings import PROMPTS, RATE, Samples, decode_file, encode, load_announcements

pytestmark = pytest.mark.whisper_base

WORD_ERRORS = {"en": 0.04, "de": 0.05, "es": 0.08, "fr": 0.08}
"""Measured when this was written: 0.032, 0, 0.034 and 0.043; with 30 s encoded for every clip 0.021, 0, 0.039 and 0.048."""

NORMALIZERS = {"en": EnglishTextNormalizer()}
OTHERS = BasicTextNormalizer(remove_diacritics=True)

languages = pytest.mark.parametrize("language", WORD_ERRORS)


@dataclass(frozen=True)
class RecordedSentence:
    """A recorded sentence."""

    samples: Samples
    text: str

    @property
    def speech(self) -> tuple[float, float]:
        """Seconds at which the voice begins and ends: 10 ms frames louder than a twentieth of the loudest."""
        frames = self.samples[: len(self.samples) // 160 * 160].reshape(-1, 160)
        loud = np.flatnonzero(np.sqrt((frames**2).mean(1)) > 0.05 * np.sqrt((frames**2).mean(1)).max())
        return float(loud[0]) / 100, float(loud[-1] + 1) / 100


@cache
def load_sentences(language: str) -> list[RecordedSentence]:
    """The recordings in this language."""
    if language == "en":
        return [RecordedSentence(samples, text) for _, samples, text in load_announcements()]
    with (PROMPTS / "references.tsv").open(encoding="utf-8") as table:
        rows = [row for row in csv.DictReader(table, delimiter="\t") if row["language"] == language]
    return [RecordedSentence(decode_file(PROMPTS / f"{row['name']}.ogg"), row["text"]) for row in rows]


def compute_word_errors(language: str, references: list[str], texts: list[str]) -> float:
    normalize = NORMALIZERS.get(language, OTHERS)
    return jiwer.wer([normalize(text) for text in references], [normalize(text) for text in texts])


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("whisper_base", tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Iterator[ServerUnderTest]:
    config = tmp_path_factory.mktemp("config") / "config.yaml"
    model = {"source": str(weights), "engine": "faster_whisper", "compute_type": "int8"}
    config.write_text(json.dumps({"models": {"base": model}}))
    with run_server("--config", str(config)) as started:
        yield started


def transcribe_samples(server: ServerUnderTest, samples: Samples) -> dict:
    """The answer in verbose_json, with times of words and segments."""
    fields = {"response_format": "verbose_json", "timestamp_granularities[]": ["word", "segment"]}
    answer = server.post_audio(encode(samples, "flac"), **fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


@languages
def test_sentences_are_understood_and_their_language_is_found(server: ServerUnderTest, weights: Path, language: str) -> None:
    """No worse than faster-whisper called directly, but for two words that other roundings may cost."""
    answers = [transcribe_samples(server, prompt.samples) for prompt in load_sentences(language)]
    references = [prompt.text for prompt in load_sentences(language)]
    errors = compute_word_errors(language, references, [answer["text"] for answer in answers])
    assert errors <= WORD_ERRORS[language]

    other = [answer["language"] for answer in answers if answer["language"] not in {language, NAMES[language]}]
    assert len(other) <= 1, f"{other} in {len(answers)} recordings"

    if language == "en":
        return  # the longest, and no different
    model = WhisperModel(str(weights), compute_type="int8", cpu_threads=2)
    direct = [" ".join(s.text for s in model.transcribe(p.samples, beam_size=5)[0]) for p in load_sentences(language)]
    leeway = 2 / sum(len(OTHERS(text).split()) for text in references)
    assert errors <= compute_word_errors(language, references, direct) + leeway


NAMES = {"en": "english", "de": "german", "es": "spanish", "fr": "french"}


@dataclass(frozen=True)
class SentenceSequence:
    """Sentences one after another, with pauses between them."""

    samples: Samples
    text: str
    spans: list[tuple[float, float]]
    """Seconds at which each sentence begins and ends."""


@cache
def build_sequence(language: str, seconds: float) -> SentenceSequence:
    """Sentences in ever another order, with pauses of 0.4 to 4 s."""
    dice = np.random.default_rng(5)
    pieces: list[Samples] = [np.zeros(RATE, np.float32)]
    texts: list[str] = []
    spans: list[tuple[float, float]] = []
    at = len(pieces[0])
    while at < seconds * RATE:
        for number in dice.permutation(len(load_sentences(language))):
            prompt = load_sentences(language)[number]
            begin, end = prompt.speech
            spans.append((at / RATE + begin, at / RATE + end))
            texts.append(prompt.text)
            pieces += [prompt.samples, np.zeros(int(dice.choice([0.4, 1.0, 2.5, 4.0]) * RATE), np.float32)]
            at += sum(map(len, pieces[-2:]))
    return SentenceSequence(np.concatenate(pieces), " ".join(texts), spans)


@languages
def test_a_long_file_loses_no_words_and_its_times_are_true(server: ServerUnderTest, language: str) -> None:
    recording = build_sequence(language, 120)
    answer = transcribe_samples(server, recording.samples)
    assert answer["language"] in {language, NAMES[language]}
    assert answer["duration"] == pytest.approx(len(recording.samples) / RATE, abs=0.1)
    assert compute_word_errors(language, [recording.text], [answer["text"]]) <= WORD_ERRORS[language] + 0.01

    words = answer["words"]
    assert all(0 < word["end"] - word["start"] < 3 for word in words)
    middles = np.array([(word["start"] + word["end"]) / 2 for word in words])
    stray = [
        word
        for word, middle in zip(words, middles, strict=True)
        if not any(begin - 0.3 <= middle <= end + 0.3 for begin, end in recording.spans)
    ]
    assert len(stray) <= len(words) * 0.01, f"words where nobody speaks: {stray}"
    begins = []
    for begin, end in recording.spans:
        inside = [word for word, middle in zip(words, middles, strict=True) if begin - 0.3 <= middle <= end + 0.3]
        assert inside, f"no word from {begin:.1f} to {end:.1f} s"
        begins.append(inside[0]["start"] - begin)
    assert np.median(np.abs(begins)) < 0.2
    assert np.quantile(np.abs(begins), 0.9) < 0.6

    pauses = [(end, begin) for (_, end), (begin, _) in pairwise(recording.spans) if begin - end > 2]
    for cue in answer["segments"]:
        for end, begin in pauses:
            assert not end + 1 < cue["start"] < begin - 1, f"{cue['text']!r} begins in a pause"
            assert not end + 1 < cue["end"] < begin - 1, f"{cue['text']!r} ends in a pause"


@pytest.fixture(scope="module")
def engine(weights: Path) -> FasterWhisper:
    return FasterWhisper.load(weights, FasterWhisper.Options(device="cpu", compute_type="int8", threads=2))


@pytest.mark.parametrize(("seconds", "frames"), [(5, 1500), (13, 1900), (17, None)])
def test_as_much_silence_is_encoded_as_the_audio_needs(
    engine: FasterWhisper, seconds: int, frames: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    encode = engine._model.encode_short

    def record(features: list[np.ndarray], frames: int) -> object:
        asked.append(frames)
        return encode(features, frames)

    monkeypatch.setattr(engine._model, "encode_short", record)
    samples = build_sequence("en", seconds).samples[: seconds * RATE]
    engine.transcribe([Window(samples, 0.0, 1.0, (0.0, float(seconds)), TranscriptionRequest(language="en"))])
    assert asked[0] == (frames or 3000)


@pytest.mark.parametrize("language", ["en", "fr"])
def test_an_announcement_that_is_played_again_and_again_is_decoded_once(
    engine: FasterWhisper, language: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It packs as well as a decoder's loop."""
    prompt = next(prompt for prompt in load_sentences(language) if 5 < len(prompt.samples) / RATE < 6.5)
    pause = np.zeros(int(0.6 * RATE), np.float32)
    samples = np.concatenate([part for _ in range(4) for part in (prompt.samples, pause)])
    temperatures: list[float] = []
    ratios: list[float] = []
    decode = CTranslate2Whisper.decode

    def record(self, encoded, rows, prompts, temperature):
        temperatures.append(temperature)
        found = decode(self, encoded, rows, prompts, temperature)
        ratios.extend(one.compression_ratio for one in found)
        return found

    monkeypatch.setattr(CTranslate2Whisper, "decode", record)
    seconds = len(samples) / RATE
    (heard,) = engine.transcribe([Window(samples, 0.0, 1.0, (0.0, seconds), TranscriptionRequest(language=language))])
    text = " ".join(segment.text for segment in heard.segments)
    assert compute_word_errors(language, [" ".join([prompt.text] * 4)], [text]) <= 0.15
    assert ratios[0] > 2.4, "an announcement that does not look like a loop proves nothing"
    assert temperatures == [0.0]


def test_a_translation_is_in_english(server: ServerUnderTest) -> None:
    prompt = next(p for p in load_sentences("es") if "número que usted ha marcado" in p.text)
    answer = server.post_audio(encode(prompt.samples, "wav"), path="translations")
    assert answer.status_code == 200, answer.text
    assert "number" in answer.json()["text"].lower()


def test_serve_takes_the_options_that_whisper_users_know(weights: Path, tmp_path: Path) -> None:
    """The model of the command line is found in the folder, preloaded with its options, and the default."""
    snapshot = tmp_path / "models--Systran--faster-whisper-base" / "snapshots" / "1"
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(weights)
    options = ("--model", "base", "--ttl", "300", "--preload", "--device", "cpu", "--compute-type", "int8")
    with run_server(*options, "--default-model", "base", "--cache-dir", str(tmp_path)) as server:
        wait_for(lambda: requests.get(f"{server.address}/api/ps", timeout=10).json()["models"], 60)
        (running,) = requests.get(f"{server.address}/api/ps", timeout=10).json()["models"]
        assert (running["id"], running["device"]) == ("base", "cpu")
        assert running["compute_type"] == "int8_float32"  # as CTranslate2 calls int8 on a CPU
        assert 200 < running["ttl_remaining"] <= 300
        sentence = load_sentences("de")[0]
        answer = server.post_audio(encode(sentence.samples, "wav"), model="whisper-1", response_format="verbose_json").json()
        assert answer["language"] == "german"
        assert compute_word_errors("de", [sentence.text], [answer["text"]]) < 0.3
        assert "not on this machine" not in server.log
