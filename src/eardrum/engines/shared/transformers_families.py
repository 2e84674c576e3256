"""The families of speech models in Transformers, Whisper among them, and the table that finds a model's family by its type."""

from __future__ import annotations

import importlib
import string
from collections.abc import Hashable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any

from msgspec.structs import replace

from eardrum.engines.base import Audio, EngineResult, Window
from eardrum.engines.shared.torch_tools import FRAME_S, find_token_starts, pad_features
from eardrum.engines.shared.transformers_base import (
    CancelCriterion,
    FamilyOptions,
    GeneratedRow,
    GeneratingFamily,
    ModelFamily,
    Seq2SeqFamily,
    build_result,
    generate,
    split_sentences,
)
from eardrum.engines.shared.whisper_decoder import TEMPERATURES, WhisperDecoder
from eardrum.engines.shared.whisper_rules import (
    DecodedText,
    DecodingThresholds,
    Features,
    SpecialTokens,
    compute_compression_ratio,
)
from eardrum.languages import LANGUAGE_NAMES
from eardrum.transcription import SAMPLE_RATE, Capabilities, SpeechTask, TranscriptionRequest, Word

UNSPACED = {"zh", "ja", "th", "lo", "my", "yue"}
"""Languages written without spaces: each token that is whole is a word."""


class TransformersEncoding:
    """The encoder's output for a batch, and what the decoder thinks at the very start of each row."""

    def __init__(self, hidden: Any, start_probabilities: Any):
        self.hidden = hidden
        self.start_probabilities = start_probabilities


class TransformersWhisper:
    """A loaded model with its processor; one thread at a time."""

    def __init__(self, library: Any, torch: Any, model: Any, processor: Any, *, beam_size: int):
        self._library = library
        self._torch = torch
        self._model = model
        self._extractor = processor.feature_extractor
        self._tokenizer = processor.tokenizer
        self._beam_size = beam_size
        vocabulary = self._tokenizer.get_vocab()
        self.special = SpecialTokens.of(vocabulary.get)
        self.multilingual = bool(getattr(model.generation_config, "is_multilingual", model.config.vocab_size >= 51865))
        self.aligns = bool(getattr(model.generation_config, "alignment_heads", None))

    def extract_features(self, audio: Audio) -> Features:
        """Log-mel of at most 30 s of audio, filled up with silence: shape [bands, 3000]."""
        features: Features = self._extractor(audio, sampling_rate=SAMPLE_RATE, return_tensors="np").input_features[0]
        return features

    def encode(self, features: Sequence[Features]) -> TransformersEncoding:
        """Encode rows of features [bands, frames]."""
        batch = self._torch.from_numpy(pad_features(features)).to(self._model.device, self._model.dtype)
        hidden = self._model.get_encoder()(batch).last_hidden_state
        scores = self._run(hidden, [[self.special.start]] * len(features)).logits[:, 0]
        return TransformersEncoding(hidden, scores.float().softmax(-1).cpu())

    def detect_languages(self, encoded: TransformersEncoding, rows: Sequence[int]) -> list[dict[str, float]]:
        """The probability of each language, for each of these rows."""
        codes, tokens = list(self.special.languages), list(self.special.languages.values())
        found = encoded.start_probabilities[rows][:, tokens]
        return [dict(zip(codes, row, strict=True)) for row in (found / found.sum(-1, keepdim=True)).tolist()]

    def decode(
        self, encoded: TransformersEncoding, rows: Sequence[int], prompts: list[list[int]], temperature: float
    ) -> list[DecodedText]:
        """Decode these rows with times; all prompts are of one length."""
        begin = len(prompts[0])
        mask = self._torch.ones(encoded.hidden[rows].shape[:2], dtype=self._torch.long, device=self._model.device)
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
        found = generate(
            partial(self._library.GenerationMixin.generate, self._model),
            {
                "encoder_outputs": self._project_logits(encoded.hidden[rows]),
                "attention_mask": mask,
                "decoder_input_ids": self._torch.tensor(prompts, device=self._model.device),
            },
            limits=[self._model.config.max_target_positions - begin] * len(rows),
            end=self.special.end,
            beams=1 if temperature else self._beam_size,
            rules=[self._library.WhisperTimeStampLogitsProcessor(self._model.generation_config, begin_index=begin)],
            **sampling,
        )
        silence = encoded.start_probabilities[rows][:, self.special.times - 2].tolist()
        return [self._build_decoding(row, quiet, temperature) for row, quiet in zip(found, silence, strict=True)]

    def align(
        self,
        encoded: TransformersEncoding,
        rows: Sequence[int],
        beginning: list[int],
        texts: list[list[int]],
        seconds: Sequence[float],
    ) -> list[tuple[list[float], list[float]]]:
        """When each text token begins, and the end, in seconds; and each token's probability given those before it."""
        usual = self._model.config._attn_implementation
        self._model.set_attn_implementation("eager")  # the others do not tell what they attend to
        try:
            return [
                self._align(encoded.hidden[[row]], beginning, text, s) for row, text, s in zip(rows, texts, seconds, strict=True)
            ]
        finally:
            self._model.set_attn_implementation(usual)

    def _align(self, hidden: Any, beginning: list[int], text: list[int], seconds: float) -> tuple[list[float], list[float]]:
        made = self._run(hidden, [[*beginning, self.special.times - 1, *text, self.special.end]], output_attentions=True)
        frames = max(1, round(seconds / FRAME_S))
        heads = self._model.generation_config.alignment_heads
        weights = self._torch.stack([made.cross_attentions[layer][0, head] for layer, head in heads])
        weights = weights[:, :, :frames].float()
        scores = made.logits[0, len(beginning) :].float().softmax(-1)
        probabilities = [float(row[token]) for row, token in zip(scores, text, strict=False)]
        return find_token_starts((weights / weights.sum(-1, keepdim=True)).cpu().numpy(), len(beginning)), probabilities

    def encode_text(self, text: str) -> list[int]:
        """The text as tokens, without special ones."""
        return self.special.strip_special(self._tokenizer.encode(text, add_special_tokens=False))

    def decode_text(self, tokens: Sequence[int]) -> str:
        """The tokens' text, without times and special tokens."""
        return str(self._tokenizer.decode(self.special.strip_special(tokens), skip_special_tokens=True))

    def split_pieces(self, tokens: list[int], language: str) -> list[tuple[str, int]]:
        """Text tokens as words and punctuation marks, each with its number of tokens."""
        found: list[tuple[str, int]] = []
        for text, count in self._split_characters(tokens):
            begins = language in UNSPACED or text.startswith(" ") or text.strip() in string.punctuation
            if begins or not found:
                found.append((text, count))
            else:
                found[-1] = (found[-1][0] + text, found[-1][1] + count)
        return found

    def _split_characters(self, tokens: list[int]) -> list[tuple[str, int]]:
        """The shortest runs of tokens that are whole characters."""
        found, first = [], 0
        for last in range(1, len(tokens) + 1):
            text = self.decode_text(tokens[first:last])
            if "\ufffd" not in text or last == len(tokens):
                found.append((text, last - first))
                first = last
        return found

    def _build_decoding(self, row: GeneratedRow, quiet: float, temperature: float) -> DecodedText:
        return DecodedText(
            row.tokens, row.avg_logprob, quiet, compute_compression_ratio(self.decode_text(row.tokens).strip()), temperature
        )

    def _run(self, hidden: Any, tokens: list[list[int]], **more: Any) -> Any:
        ids = self._torch.tensor(tokens, device=self._model.device)
        return self._model(encoder_outputs=self._project_logits(hidden), decoder_input_ids=ids, use_cache=False, **more)

    def _project_logits(self, hidden: Any) -> Any:
        return self._library.modeling_outputs.BaseModelOutput(last_hidden_state=hidden)


class WhisperFamily(ModelFamily):
    """Whisper tiny to large-v3, turbo, distil and what others trained from them."""

    loads = "AutoModelForSpeechSeq2Seq"
    abilities = {
        "detects_language": True,
        "translate": True,
        "words": True,
        "logprobs": True,
        "prompt": True,
        "hotwords": True,
        "temperature": True,
        "fixed_window": True,
    }

    def __init__(self, model: Any, processor: Any, options: FamilyOptions):
        super().__init__(model, processor, options)
        library, torch = importlib.import_module("transformers"), importlib.import_module("torch")
        self._whisper = TransformersWhisper(library, torch, model, processor, beam_size=options.beam_size)
        self._decoder = WhisperDecoder(
            self._whisper, thresholds=DecodingThresholds(), temperatures=TEMPERATURES, prompt="", remembers=False
        )

    def transcribe(self, windows: Sequence[Window]) -> list[EngineResult]:
        """Decode the windows together."""
        return self._decoder.transcribe(windows)

    def batch_key(self, window: Window) -> Hashable:
        """Where the text begins, and the temperature."""
        return self._decoder.batch_key(window)

    def refine_capabilities(self, capabilities: Capabilities) -> Capabilities:
        """English-only models neither detect nor translate; words need to be told which heads follow the speech."""
        several = self._whisper.multilingual
        return replace(
            capabilities,
            languages=tuple(self._whisper.special.languages) if several else ("en",),
            detects_language=several,
            translate=several,
            words=self._whisper.aligns,
            logprobs=self._whisper.aligns,
        )


STEPS_PER_SECOND = 150
"""More than a transducer can take: 12.5 frames a second, and at each at most ten tokens and a blank."""

Piece = tuple[str, float, float]
"""A token's text, its start and its end in seconds."""


class TransducerFamily(ModelFamily):
    """Parakeet RNNT: tokens with the frame each was emitted at."""

    loads = "AutoModelForRNNT"
    abilities = {"words": True}

    def transcribe(self, windows: Sequence[Window]) -> list[EngineResult]:
        """Decode greedily; the library gives no probabilities."""
        made = self.model.generate(
            **self.extract_features(windows),
            **self.settings(),
            max_new_tokens=int(max(window.seconds for window in windows) * STEPS_PER_SECOND) + 1,
            return_dict_in_generate=True,
            stopping_criteria=[CancelCriterion(windows)],
        )
        _, times = self.processor.decode(made.sequences, durations=made.durations, skip_special_tokens=True)
        return [self._build_result(window, row) for window, row in zip(windows, times, strict=True)]

    def settings(self) -> dict[str, Any]:
        """More for the model's `generate`."""
        return {}

    def _build_result(self, window: Window, row: list[dict[str, Any]]) -> EngineResult:
        pieces = [(piece["token"], float(piece["start"]), float(piece["end"])) for piece in row]
        # The library lets rows that are through continue over their padding until the longest is.
        pieces = [piece for piece in pieces if piece[1] < window.seconds]
        segments = split_sentences(list(build_words(pieces, window.seconds)))
        for segment in segments:
            segment.words = segment.words if window.request.words else []
        return EngineResult(segments, window.request.language or self.options.language)


class DurationTransducerFamily(TransducerFamily):
    """Parakeet TDT: each token also says how long it lasts."""

    loads = "AutoModelForTDT"

    def settings(self) -> dict[str, Any]:
        """Durations stand behind the vocabulary in the model's scores: they are no tokens."""
        size = self.model.config.vocab_size
        return {"suppress_tokens": list(range(size, size + len(self.model.config.durations)))}


class CtcFamily(ModelFamily):
    """Parakeet CTC and its like: the best token of each frame, repetitions and blanks taken out."""

    loads = "AutoModelForCTC"

    def transcribe(self, windows: Sequence[Window]) -> list[EngineResult]:
        """Decode greedily; the confidence is the mean over the frames."""
        made = self.model.generate(**self.extract_features(windows), return_dict_in_generate=True)
        best = made.logits.float().log_softmax(-1).max(-1).values
        texts = self.processor.batch_decode(made.sequences, skip_special_tokens=True)
        return [
            build_result(window, text, window.request.language or self.options.language, avg_logprob=float(row[:frames].mean()))
            for window, text, row, frames in zip(windows, texts, best, self._count_frames(windows, best.shape[1]), strict=True)
        ]

    def _count_frames(self, windows: Sequence[Window], longest: int) -> list[int]:
        """Frames of each row that are not padding."""
        most = max(len(window.audio) for window in windows)
        return [max(1, round(longest * len(window.audio) / most)) for window in windows]


def build_words(pieces: Sequence[Piece], seconds: float) -> Iterator[Word]:
    """Pieces joined to words: a new one begins where a piece begins with a space. No word ends after `seconds`.

    Probabilities are not known and said to be 1.
    """
    number = 0

    def numbered(piece: Piece) -> int:
        nonlocal number
        number += piece[0].startswith(" ")
        return number

    for _, group in groupby(pieces, numbered):
        parts = list(group)
        text = "".join(text for text, _, _ in parts)
        start, end = min(parts[0][1], seconds), min(parts[-1][2], seconds)
        if text.strip():
            yield Word(text, start, max(start, end), 1.0)


FALLBACK = "en"
"""Language for models that need one when the request names none."""

_SPELLED = LANGUAGE_NAMES | {"tl": "filipino"}
"""Languages as Qwen spells them, in lower case."""
_CODES = {name: code for code, name in _SPELLED.items()}


class CanaryFamily(GeneratingFamily):
    """Canary: the language spoken and the language to write, for each row."""

    known_as = "canary-1b-v2"
    abilities = GeneratingFamily.abilities | {"translate": True}

    def transcribe(self, windows: Sequence[Window]) -> list[EngineResult]:
        """Decode the windows as one batch."""
        spoken = [window.request.language or self.options.language or FALLBACK for window in windows]
        written = ["en" if w.request.task is SpeechTask.TRANSLATE else code for w, code in zip(windows, spoken, strict=True)]
        made = self.processor.apply_transcription_request(
            [window.audio for window in windows], source_language=spoken, target_language=written
        )
        rows = self.generate_rows(self.move_to_model(made), windows)
        texts = self.processor.batch_decode([row.tokens for row in rows], skip_special_tokens=True)
        return [
            self.build_row_result(window, row, text, code)
            for window, row, text, code in zip(windows, rows, texts, spoken, strict=True)
        ]


class CohereFamily(GeneratingFamily):
    """Cohere's transcription models: the language is one per call."""

    known_as = "cohere-transcribe"

    def batch_key(self, window: Window) -> Hashable:
        """Sampling and language are one per call."""
        return window.request.temperature, window.request.language

    def transcribe(self, windows: Sequence[Window]) -> list[EngineResult]:
        """Decode the windows as one batch."""
        language = windows[0].request.language or self.options.language or FALLBACK
        made = self.extract_features(windows, language=language)
        made.pop("audio_chunk_index", None)
        rows = self.generate_rows(made, windows)
        texts = self.processor.tokenizer.batch_decode([row.tokens for row in rows], skip_special_tokens=True)
        return [
            self.build_row_result(window, row, text, language) for window, row, text in zip(windows, rows, texts, strict=True)
        ]


class QwenFamily(GeneratingFamily):
    """Qwen3-ASR: tells the language before the text unless it is told, and takes words to expect."""

    known_as = "qwen3-asr"
    abilities = GeneratingFamily.abilities | {"detects_language": True, "prompt": True, "hotwords": True}

    def transcribe(self, windows: Sequence[Window]) -> list[EngineResult]:
        """Decode the windows as one batch."""
        made = self.processor.apply_transcription_request(
            [window.audio for window in windows],
            language=[_find_language_name(window.request.language) for window in windows],
            prompt=[build_context(window.request) or None for window in windows],
        )
        rows = self.generate_rows(self.move_to_model(made), windows)
        texts = self.processor.tokenizer.batch_decode([row.tokens for row in rows], skip_special_tokens=True)
        answers = self.processor.parse_output(texts)
        return [
            self.build_row_result(
                window, row, answer["transcription"], window.request.language or _find_language_code(answer["language"])
            )
            for window, row, answer in zip(windows, rows, answers, strict=True)
        ]


class GlmFamily(GeneratingFamily):
    """GLM-ASR: a chat whose only question is to transcribe."""

    loads = "AutoModelForMultimodalLM"

    def transcribe(self, windows: Sequence[Window]) -> list[EngineResult]:
        """Decode the windows as one batch."""
        made = self.processor.apply_transcription_request([window.audio for window in windows])
        rows = self.generate_rows(self.move_to_model(made), windows)
        texts = self.processor.batch_decode([row.tokens for row in rows], skip_special_tokens=True)
        return [
            self.build_row_result(window, row, text, window.request.language or "")
            for window, row, text in zip(windows, rows, texts, strict=True)
        ]


def build_context(request: TranscriptionRequest) -> str:
    """The context given to a model: the prompt, then the hotwords."""
    return " ".join(part for part in (request.prompt, ", ".join(request.hotwords)) if part)


def _find_language_name(code: str | None) -> str | None:
    return _SPELLED[code].title() if code else None


def _find_language_code(name: str | None) -> str:
    """The code of a language as the model spells it; empty when it said none."""
    return _CODES.get((name or "").lower(), "")


FAMILIES: dict[str, type[ModelFamily]] = {
    "canary": CanaryFamily,
    "cohere_asr": CohereFamily,
    "glmasr": GlmFamily,
    "moonshine": Seq2SeqFamily,
    "moonshine_streaming": Seq2SeqFamily,
    "parakeet_ctc": CtcFamily,
    "parakeet_rnnt": TransducerFamily,
    "parakeet_tdt": DurationTransducerFamily,
    "qwen3_asr": QwenFamily,
    "whisper": WhisperFamily,
}
"""Only what the tests run: each of these has been loaded, asked and read with the library."""
