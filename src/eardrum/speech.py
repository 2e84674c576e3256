"""The data types of speech synthesis that gateway, runner and engines share: request, events, and the scripts of languages.

They cross the process boundary as JSON, as those of transcriptions do. Audio is bytes of the requested format.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from enum import StrEnum

from msgspec import Struct

from eardrum.errors import UnspeakableTextError
from eardrum.languages import get_language_name
from eardrum.transcription import JsonRecord

OUTPUT_RATE = 24_000
"""Hz of the audio unless a request names another rate. OpenAI's PCM always has it."""

MIN_SPEED, MAX_SPEED = 0.25, 4.0

OPENAI_VOICES = (
    *("alloy", "ash", "ballad", "cedar", "coral", "echo", "fable", "marin", "nova", "onyx", "sage", "shimmer", "verse"),
)
"""Voices that clients name without asking which there are. A model that lacks one speaks with its own."""

WHOLE_FORMATS = ("wav", "flac")
"""Formats whose header holds the length of the audio: it is known only at the end."""


class SpeechFormat(StrEnum):
    """The encoding of synthesized speech."""

    MP3 = "mp3"
    OPUS = "opus"
    """Opus in Ogg."""
    AAC = "aac"
    """AAC in ADTS frames."""
    FLAC = "flac"
    WAV = "wav"
    PCM = "pcm"
    """Little-endian samples of 16 bits, mono, without a header."""


class SpeechRequest(JsonRecord, Struct, frozen=True):
    """The parameters of a synthesis, independent of any wire protocol. The text follows by itself, maybe in pieces."""

    voice: str = ""
    """A voice of the model; empty: its first one."""
    speed: float = 1.0
    """1 is the voice's own pace, 2 is twice as fast."""
    format: SpeechFormat = SpeechFormat.PCM
    sample_rate: int = OUTPUT_RATE
    """Hz of the audio."""
    streamed: bool = True
    """Audio is wanted as soon as it is there. Without it, WAV and FLAC come as a whole, with their lengths in the header."""
    bulk: bool = False
    """Every other request goes first, as for jobs."""

    @property
    def is_whole(self) -> bool:
        """Whether the audio comes only once all of it is there."""
        return not self.streamed and self.format in WHOLE_FORMATS


class SpeechBegun(JsonRecord, Struct, frozen=True):
    """The first audio is there."""

    size: int | None = None
    """Bytes of all audio, if that is known."""
    sample_rate: int = OUTPUT_RATE
    """Hz of PCM. Other servers have their own rates."""


class SpeechSummary(JsonRecord, Struct, frozen=True):
    """Totals that follow the last audio and end every successful response."""

    characters: int = 0
    """Characters of the text that were spoken."""
    sentences: int = 0
    duration: float = 0.0
    """Seconds of audio."""
    queue_s: float = 0.0
    """Longest wait of a sentence for its turn."""
    synthesis_s: float = 0.0
    """Time that the engine took."""


SpeechEvent = SpeechBegun | bytes | SpeechSummary
"""The events of a synthesis, in this order: begun, pieces of audio, a summary."""

LATIN = frozenset(("LATIN",))
CYRILLIC = frozenset(("CYRILLIC",))
ARABIC = frozenset(("ARABIC",))
DEVANAGARI = frozenset(("DEVANAGARI",))

SCRIPTS: dict[str, frozenset[str]] = {
    **dict.fromkeys(("ru", "uk", "be", "bg", "mk", "kk", "ky", "tg", "mn", "tt", "ba"), CYRILLIC),
    **dict.fromkeys(("ar", "fa", "ur", "ps", "sd"), ARABIC),
    **dict.fromkeys(("hi", "mr", "ne", "sa"), DEVANAGARI),
    **dict.fromkeys(("zh", "yue"), frozenset(("CJK", "BOPOMOFO"))),
    "ja": frozenset(("CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA")),
    "ko": frozenset(("HANGUL", "CJK")),
    "sr": CYRILLIC | LATIN,
    "uz": CYRILLIC | LATIN,
    "az": CYRILLIC | LATIN,
    **{
        code: frozenset((script,))
        for code, script in (
            *(("el", "GREEK"), ("he", "HEBREW"), ("yi", "HEBREW"), ("th", "THAI"), ("ka", "GEORGIAN"), ("hy", "ARMENIAN")),
            *(("bn", "BENGALI"), ("as", "BENGALI"), ("ta", "TAMIL"), ("te", "TELUGU"), ("kn", "KANNADA"), ("ml", "MALAYALAM")),
            *(("gu", "GUJARATI"), ("pa", "GURMUKHI"), ("si", "SINHALA"), ("my", "MYANMAR"), ("km", "KHMER"), ("lo", "LAO")),
            *(("am", "ETHIOPIC"), ("bo", "TIBETAN")),
        )
    },
}
"""Scripts of languages that are not, or not only, written in Latin letters, as Unicode's names of letters begin."""


def check_script(text: str, language: str, voice: str) -> None:
    """Check that a voice can read a text: most of its letters belong to the scripts of the voice's language, or are Latin.

    Engines drop letters that they do not know, and a Chinese text would be silence.

    Args:
        text: a sentence, or more.
        language: the voice's, as in `en-US`; empty: unknown, any text passes.
        voice: its name, for the message.

    Raises:
        UnspeakableTextError: most letters are of another script.
    """
    code = language.partition("-")[0]
    if not code or text.isascii():
        return
    known = SCRIPTS.get(code, LATIN) | LATIN
    letters = [letter for letter in unicodedata.normalize("NFKC", text) if letter.isalpha()]
    foreign = [letter for letter in letters if not letter.isascii() and _find_script(letter) not in known]
    if len(foreign) * 2 > len(letters):
        shown = "".join(foreign[:12])
        raise UnspeakableTextError(
            f"The voice {voice} speaks {get_language_name(code).title()} and cannot read {shown!r}: choose a voice of the text's "
            "language (GET /v1/audio/voices)."
        )


def _find_script(letter: str) -> str:
    return unicodedata.name(letter, "").partition(" ")[0]


def list_languages(voices: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """List the ISO 639 codes of voices' languages, each once."""
    return tuple(dict.fromkeys(language.partition("-")[0] for _, language in voices if language))
