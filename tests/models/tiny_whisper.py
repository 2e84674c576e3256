"""The tiny Whisper of `tests/data/hearing`: its arrays, its tokenizer and speech it understands."""

from __future__ import annotations

import base64
import csv
import json
import lzma
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from tests.recordings import ROOT, Samples, decode_file

FOLDER = ROOT / "tests" / "data" / "hearing"

_CODES = """
en zh de es ru ko fr ja pt tr pl ca nl ar sv it id hi fi vi he uk el ms cs ro da hu ta no th ur hr bg lt la mi ml cy sk te
fa lv bn sr az sl kn et mk br eu is hy ne mn bs kk sq sw gl mr pa si km sn yo so af oc ka be tg sd gu am yi lo uz fo ht ps
tk nn mt sa lb my bo tl mg as tt haw ln ha ba jw su
"""

LANGUAGES = _CODES.split()
"""In the order of their tokens."""

END_OF_TEXT, START = 50257, 50258
LANGUAGE_IDS = {language: START + 1 + i for i, language in enumerate(LANGUAGES)}
TRANSLATE, TRANSCRIBE, START_OF_LM, START_OF_PREVIOUS, NO_SPEECH, NO_TIMESTAMPS = range(50358, 50364)
TIMES = 1501

# Whisper's own lists: symbols and annotations that nobody says, then the special tokens; and the blank.
SUPPRESS = [
    *(1, 2, 7, 8, 9, 10, 14, 25, 26, 27, 28, 29, 31, 58, 59, 60, 61, 62, 63, 90, 91, 92, 93, 359, 503, 522, 542, 873, 893, 902),
    *(918, 922, 931, 1350, 1853, 1982, 2460, 2627, 3246, 3253, 3268, 3536, 3846, 3961, 4183, 4667, 6585, 6647, 7273, 9061, 9383),
    *(10428, 10929, 11938, 12033, 12331, 12562, 13793, 14157, 14635, 15265, 15618, 16553, 16604, 18362, 18956, 20075, 21675),
    *(22520, 26130, 26161, 26435, 28279, 29464, 31650, 32302, 32470, 36865, 42863, 47425, 49870, 50254),
    *(START, TRANSLATE, TRANSCRIBE, START_OF_LM, START_OF_PREVIOUS, NO_SPEECH),
]
SUPPRESS_AT_BEGIN = [220, END_OF_TEXT]


@dataclass(frozen=True, slots=True)
class WhisperDims:
    """Sizes of a Whisper, named as in openai-whisper."""

    n_mels: int
    n_audio_ctx: int
    n_audio_state: int
    n_audio_head: int
    n_audio_layer: int
    n_vocab: int
    n_text_ctx: int
    n_text_state: int
    n_text_head: int
    n_text_layer: int

    @property
    def alignment_heads(self) -> list[tuple[int, int]]:
        """The cross-attention heads that follow the speech, as (layer, head): trained to be those."""
        return [(self.n_text_layer - 1, head) for head in range(3)]


@dataclass(frozen=True, slots=True)
class SpokenClip:
    """An utterance: float32 samples [n] at 16 kHz, and where in them is said what, in seconds."""

    name: str
    language: str
    start: float
    end: float
    text: str
    samples: Samples


def load_weights() -> tuple[WhisperDims, dict[str, np.ndarray]]:
    """The sizes, and the float16 arrays by openai-whisper's names."""
    with np.load(FOLDER / "hearing-whisper.npz") as arrays:
        dims = WhisperDims(**json.loads(bytes(arrays["dims"])))
        return dims, {name: arrays[name] for name in arrays if name != "dims"}


@cache
def load_clips() -> tuple[SpokenClip, ...]:
    """The 16 utterances."""
    with (FOLDER / "references.tsv").open(encoding="utf-8") as table:
        return tuple(
            SpokenClip(name, language, float(start), float(end), text, decode_file(FOLDER / "clips" / f"{name}.flac"))
            for name, language, start, end, text in csv.reader(table, delimiter="\t")
        )


@cache
def get_clip(name: str) -> SpokenClip:
    """The utterance of this name."""
    return next(clip for clip in load_clips() if clip.name == name)


def join_clips(names: list[str], pause_s: float = 1.0) -> Samples:
    """Utterances one after another with silence between them."""
    pause = np.zeros(round(pause_s * 16_000), np.float32)
    return np.concatenate([piece for name in names for piece in (get_clip(name).samples, pause)][:-1])


def write_tokenizer(path: Path) -> None:
    """Whisper's multilingual tokenizer as a `tokenizer.json` of the `tokenizers` library."""
    build_tokenizer().save(str(path), pretty=False)


@cache
def build_tokenizer(*, english: bool = False) -> Tokenizer:
    """Whisper's multilingual tokenizer: 51,865 tokens with the special ones and the times.

    The one of its English models has one text token less, so that all special ones come one earlier: here the empty token.
    """
    ranks = {token: rank for token, rank in _load_ranks().items() if token or not english}
    letters = _list_letters()
    vocabulary = {"".join(letters[b] for b in token): rank for token, rank in ranks.items()}
    merges = [
        tuple("".join(letters[b] for b in half) for half in halves)
        for token in ranks
        if len(token) > 1 and len(halves := _split_token(token, ranks)) == 2
    ]
    made = Tokenizer(models.BPE(vocabulary, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in list_special_tokens()])
    made.add_tokens([AddedToken(f"<|{i * 0.02:.2f}|>", special=False, normalized=False) for i in range(TIMES)])
    return made


def list_special_tokens() -> list[str]:
    """The special tokens, in the order of their numbers from `END_OF_TEXT` on."""
    spoken = [f"<|{language}|>" for language in LANGUAGES]
    rest = ["translate", "transcribe", "startoflm", "startofprev", "nocaptions", "notimestamps"]
    return ["<|endoftext|>", "<|startoftranscript|>", *spoken, *(f"<|{name}|>" for name in rest)]


def _load_ranks() -> dict[bytes, int]:
    lines = lzma.decompress((FOLDER / "multilingual.tiktoken.xz").read_bytes()).splitlines()
    return {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}


def _split_token(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The two tokens that were merged into this one: what pairing by rank makes of it when stopped before its own."""
    parts = [bytes([b]) for b in token]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, len(ranks)) for a, b in pairwise(parts)]
        best = min(pairs)
        if best >= ranks[token]:
            break
        at = pairs.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def _list_letters() -> list[str]:
    """The printable character that stands for each byte in byte-level encodings, as GPT-2 assigned them."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]
