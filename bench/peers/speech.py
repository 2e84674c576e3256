"""What everybody is sent: short recordings, the same joined, prompts that repeat, and long files of speech."""

from __future__ import annotations

import gzip
import io
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import cast

import av
import numpy as np

from bench.engines.folder import Recording, read_folder
from bench.errors import BenchError
from bench.recordings import ROOT, SAMPLE, Samples, decode_file, encode_mp3
from eardrum.transcription import SAMPLE_RATE

SHIPPED = ((ROOT / "tests" / "data" / "phone", "en"), (ROOT / "tests" / "data" / "prompts", ""))
"""Folders of recordings with their texts: announcements in English, sentences in German, Spanish and French."""

SAMPLE_TEXT = (
    "And Mr. John Dashwood had then leisure to consider how much there might be prudently in his power to do for them. "
    "Had he married a more amiable woman, he might have been made still more respectable than he was. "
    "He might even have been made amiable himself."
)

DEBIAN = Path("/usr/share/asterisk/sounds/en_US_f_Allison")
"""568 English recordings, of Debian's asterisk-core-sounds-en-wav: enough that ten minutes say nothing twice."""
DEBIAN_TEXTS = Path("/usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz")
"""Their texts, of the package asterisk-core-sounds-en: lines of a name, a colon and the text."""

SHORTEST_S, LONGEST_CLIP_S = 2.0, 20.0
PAUSE_S, ECHO_PAUSE_S = 0.75, 0.3
ECHOES = 4
"""So often a repeated prompt is said in a row."""


@dataclass(frozen=True)
class SpokenFile:
    """A file to send. Its text is "" where nobody wrote down what is said."""

    name: str
    language: str
    seconds: float
    text: str
    data: bytes = field(repr=False)
    repeats: bool = False
    """Whether prompts are said several times in a row: errors in it are counted apart."""

    @property
    def pcm(self) -> bytes:
        """16 bit samples at 16 kHz, mono."""
        return _convert_to_pcm(self.data)


@dataclass(frozen=True, slots=True)
class SpeechSizes:
    """How much is sent in a round; seconds of audio."""

    clips: int
    joined_s: float
    echoed: int
    long_s: tuple[float, float]
    beside_s: float
    beside_clips: int
    at_once: int = 8


FULL = SpeechSizes(clips=17, joined_s=205, echoed=2, long_s=(300, 600), beside_s=90, beside_clips=5)
QUICK = SpeechSizes(clips=5, joined_s=30, echoed=1, long_s=(45, 60), beside_s=30, beside_clips=2, at_once=4)


class SpeechSource:
    """Makes the files of each round: other ones each time, the same ones for everybody."""

    def __init__(self, folder: Path | None, language: str, sizes: SpeechSizes):
        self.sizes = sizes
        self._recordings = read_folder(folder, language) if folder else _read_shipped()
        self._by_language: dict[str, list[Recording]] = {}
        for recording in self._recordings:
            self._by_language.setdefault(recording.language, []).append(recording)
        self.languages = sorted(self._by_language, key=lambda one: -sum(r.seconds for r in self._by_language[one]))
        if "en" in self.languages:
            self.languages.sort(key=lambda one: one != "en")
        self._long, self.described = self._choose_long(folder)
        self._clips = _mix_languages([one for one in self._recordings if one.seconds <= LONGEST_CLIP_S])
        if not self._clips:
            raise BenchError(f"No recording is {LONGEST_CLIP_S:g} s or shorter, so there are no clips to send.")

    def _choose_long(self, folder: Path | None) -> tuple[list[Recording], str]:
        """Recordings for the long files, and a sentence about all that is sent."""
        count = f"{len(self._recordings)} recordings of {sum(one.seconds for one in self._recordings):.0f} s"
        named = ", ".join(f"{len(self._by_language[one])} {one or 'of unknown language'}" for one in self.languages)
        if folder:
            return self._by_language[self.languages[0]], f"{count} ({named}) from {folder}, of which the long files consist, too."
        if debian := _read_debian():
            length = sum(one.seconds for one in debian)
            return (
                debian,
                f"{count} ({named}) that ship with the tests; long files of {length:.0f} s of Debian's English prompts"
                f"{'' if debian[0].text else ', whose texts are not installed (asterisk-core-sounds-en)'}.",
            )
        sample = Recording(SAMPLE, 18.4, SAMPLE_TEXT, "en")
        return (
            [sample, *self._by_language["en"]],
            f"{count} ({named}) that ship with the tests, of which the long files consist, too, in ever another order: Debian's "
            "asterisk-core-sounds-en-wav, which has more, is not installed.",
        )

    def take_clips(self, turn: int) -> list[SpokenFile]:
        """The short recordings of this round, in all languages; after enough rounds all of them were sent."""
        return [self._read_clip(turn * self.sizes.clips + place) for place in range(self.sizes.clips)]

    def take_first(self) -> SpokenFile:
        """The clip that a fresh server is sent: always the same."""
        return self._read_clip(0)

    def take_others(self, turn: int, count: int) -> list[SpokenFile]:
        """Other short recordings than the clips, for requests at once and beside files."""
        return [self._read_clip((turn + 1) * self.sizes.clips + place) for place in range(count)]

    def join_prompts(self, turn: int) -> SpokenFile:
        """Prompts of one language, the language changing from round to round, in a new order each time they are through."""
        language = self.languages[turn % len(self.languages)]
        order = _repeat_shuffled(self._by_language[language], random.Random(turn))
        return _join(f"joined {turn}", ((one, PAUSE_S) for one in order), self.sizes.joined_s)

    def repeat_prompts(self, turn: int) -> SpokenFile:
        """Some prompts of the first language, each said several times in a row."""
        dice = random.Random(100 + turn)
        chosen = dice.sample(self._by_language[self.languages[0]], self.sizes.echoed)
        spoken = [(one, PAUSE_S if echo == ECHOES - 1 else ECHO_PAUSE_S) for one in chosen for echo in range(ECHOES)]
        return replace(_join(f"repeated {turn}", spoken, float("inf")), repeats=True)

    def build_long(self, turn: int, seconds: float) -> SpokenFile:
        """Speech with pauses of 0.3 to 1.2 s."""
        dice = random.Random(f"{turn} {seconds}")
        spoken = ((one, dice.uniform(0.3, 1.2)) for one in _repeat_shuffled(self._long, dice))
        return _join(f"long {turn} {seconds:g}", spoken, seconds)

    def _read_clip(self, number: int) -> SpokenFile:
        one = self._clips[number % len(self._clips)]
        return SpokenFile(one.path.stem, one.language, one.seconds, one.text, one.path.read_bytes())


def _read_shipped() -> list[Recording]:
    if missing := [folder for folder, _ in SHIPPED if not folder.is_dir()]:
        raise BenchError(f"{missing[0]} is missing: run this from a copy of the repository, or name a folder with --recordings.")
    return [recording for folder, language in SHIPPED for recording in read_folder(folder, language)]


def _read_debian() -> list[Recording]:
    """Debian's prompts that are not single words, with their texts if they are installed; none if the package is not."""
    texts = _read_debian_texts()
    found = []
    for path in sorted(DEBIAN.glob("*.wav")):
        seconds = (path.stat().st_size - 44) / 2 / 8_000  # all of them are 16 bit at 8 kHz
        if seconds >= SHORTEST_S and (path.stem in texts or not texts):
            found.append(Recording(path, seconds, texts.get(path.stem, ""), "en"))
    return found


def _read_debian_texts() -> dict[str, str]:
    if not DEBIAN_TEXTS.exists():
        return {}
    lines = gzip.decompress(DEBIAN_TEXTS.read_bytes()).decode("utf-8-sig").splitlines()
    pairs = (line.partition(":") for line in lines if not line.startswith(";"))
    return {name.strip(): text.strip() for name, _, text in pairs if text.strip()}


def _mix_languages(recordings: Sequence[Recording]) -> list[Recording]:
    """All of them, so that every stretch has its share of each language."""
    count: dict[str, int] = {}
    for one in recordings:
        count[one.language] = count.get(one.language, 0) + 1
    seen: dict[str, int] = {}
    places = []
    for one in recordings:
        seen[one.language] = seen.get(one.language, 0) + 1
        places.append((seen[one.language] - 0.5) / count[one.language])
    return [one for _, _, one in sorted(zip(places, range(len(places)), recordings, strict=True))]


def _repeat_shuffled(recordings: Sequence[Recording], dice: random.Random) -> Iterator[Recording]:
    while True:
        yield from dice.sample(recordings, len(recordings))


def _join(name: str, spoken: Iterable[tuple[Recording, float]], seconds: float) -> SpokenFile:
    """Whole recordings, each with a pause behind it, as long as they fit into `seconds`, as MP3."""
    parts: list[Samples] = []
    texts: list[str] = []
    language, length = "", 0
    for one, pause in spoken:
        samples = _decode(one.path)
        if parts and length + len(samples) > seconds * SAMPLE_RATE:
            break
        language = one.language
        texts.append(one.text)
        parts += [samples, np.zeros(int(pause * SAMPLE_RATE), np.float32)]
        length += sum(map(len, parts[-2:]))
    text = " ".join(texts) if all(texts) else ""
    return SpokenFile(name, language, length / SAMPLE_RATE, text, encode_mp3(cast(Samples, np.concatenate(parts))))


@cache
def _decode(path: Path) -> Samples:
    return decode_file(path)


@cache
def _convert_to_pcm(data: bytes) -> bytes:
    with av.open(io.BytesIO(data)) as file:
        resampler = av.AudioResampler("s16", "mono", SAMPLE_RATE)
        frames = [r for frame in file.decode(audio=0) for r in resampler.resample(frame)] + resampler.resample(None)
    return b"".join(frame.to_ndarray().tobytes() for frame in frames)
