"""Common base of the model families that Transformers runs: features, generation row by row, results."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from msgspec import Struct

from eardrum.engines.base import EngineResult, Window
from eardrum.engines.shared.whisper_rules import compute_compression_ratio
from eardrum.transcription import SAMPLE_RATE, Capabilities, Segment, Token, Word


class FamilyOptions(Struct, frozen=True):
    """The decoding settings from the model's options."""

    beam_size: int = 1
    language: str = ""
    """Language used if a request names none and the model cannot detect it; empty: unknown."""


class ModelFamily(ABC):
    """A loaded model of one kind. One thread calls `transcribe`."""

    loads: ClassVar[str]
    """The class of `transformers` that loads them."""

    known_as: ClassVar[str] = ""
    """A name by which the engine's variants recognise the family, under any name of the directory."""

    abilities: ClassVar[dict[str, Any]] = {}
    """Fields of `Capabilities` in which the family differs from a model that only transcribes."""

    def __init__(self, model: Any, processor: Any, options: FamilyOptions):
        self.model = model
        self.processor = processor
        self.options = options

    @abstractmethod
    def transcribe(self, windows: Sequence[Window]) -> list[EngineResult]:
        """Decode a batch whose windows have one `batch_key`; returns one result per window, in order."""

    def batch_key(self, window: Window) -> Hashable:
        """Windows with equal keys may share a batch."""
        return None

    def refine_capabilities(self, capabilities: Capabilities) -> Capabilities:
        """The capabilities, with what only the loaded weights know."""
        return capabilities

    def extract_features(self, windows: Sequence[Window], **more: Any) -> Any:
        """The processor's tensors for the windows, padded to the longest, on the model's device and in its format."""
        audio = [window.audio for window in windows]
        made = self.processor(audio, sampling_rate=SAMPLE_RATE, return_tensors="pt", **more)
        return self.move_to_model(made)

    def move_to_model(self, made: Any) -> Any:
        """A processor's tensors where the model is, the fractions in the model's number format."""
        return made.to(self.model.device, self.model.dtype)


def build_result(window: Window, text: str, language: str, **measures: Any) -> EngineResult:
    """One segment over the window's speech, or none without text. `measures` are fields of the segment."""
    text = text.strip()
    if not text:
        return EngineResult([], language)
    segment = Segment(*window.speech_span, text, compression_ratio=compute_compression_ratio(text), **measures)
    return EngineResult([segment], language)


def split_sentences(words: Sequence[Word]) -> list[Segment]:
    """Words joined to a segment per sentence: for models that time words and know no segments."""
    found: list[list[Word]] = [[]]
    for word in words:
        found[-1].append(word)
        if word.word.rstrip().endswith((".", "?", "!", "。", "？", "！")):  # noqa: RUF001 -- full-width on purpose
            found.append([])
    return [
        Segment(spoken[0].start, spoken[-1].end, text, compression_ratio=compute_compression_ratio(text), words=spoken)
        for spoken in found
        if spoken and (text := "".join(word.word for word in spoken).strip())
    ]


def build_tokens(tokenizer: Any, ids: Sequence[int], logprobs: Sequence[float]) -> list[Token]:
    """Each token's text with its log probability, special tokens left out."""
    special = set(tokenizer.all_special_ids)
    return [Token(tokenizer.decode([id]), p) for id, p in zip(ids, logprobs, strict=False) if id not in special]


@dataclass(slots=True)
class GeneratedRow:
    """The tokens generated for one window, without the end token."""

    tokens: list[int]
    logprobs: list[float] = field(default_factory=list)
    """Natural log probability of each token and of the end token; empty after a beam search."""
    avg_logprob: float = 0.0


class LogprobRecorder:
    """A logits processor that notes the probability of each chosen token when it sees it as the last of the input."""

    def __init__(self) -> None:
        self.prompt = 0
        """Tokens there were before the first step."""
        self._logprobs: Any = None
        self._chosen: list[Any] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Note the token chosen from the scores before these; change nothing. input_ids [b, t], scores [b, vocabulary]."""
        if self._logprobs is None:
            self.prompt = input_ids.shape[1]
        else:
            self._note(input_ids[:, -1:])
        self._logprobs = scores.float().log_softmax(-1)
        return scores

    def finish(self, sequences: Any) -> list[list[float]]:
        """The log probabilities of all steps, one list per row."""
        self._note(sequences[:, -1:])
        return [list(row) for row in zip(*(step.tolist() for step in self._chosen), strict=True)]

    def _note(self, chosen: Any) -> None:
        self._chosen.append(self._logprobs.gather(1, chosen)[:, 0])


class CancelCriterion:
    """A stopping criterion that ends the rows whose windows were cancelled."""

    def __init__(self, windows: Sequence[Window]):
        self._windows = windows

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        """One truth value per row; input_ids [b x beams, t]."""
        return _repeat_per_row(input_ids, [window.cancelled for window in self._windows])


class RowLengthLimit:
    """A stopping criterion that ends each row at its own limit, so that its text does not depend on its company.

    `before` is the number of tokens before the first step.
    """

    def __init__(self, limits: Sequence[int], before: Callable[[], int]):
        self._limits = limits
        self._before = before

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        """One truth value per row; input_ids [b x beams, t]."""
        written = input_ids.shape[1] - self._before()
        return _repeat_per_row(input_ids, [written >= limit for limit in self._limits])


def generate(
    run: Any,
    inputs: Any,
    *,
    limits: Sequence[int],
    end: int | list[int],
    beams: int = 1,
    rules: Sequence[Any] = (),
    ends: Sequence[Any] = (),
    **more: Any,
) -> list[GeneratedRow]:
    """Generate tokens for each row with `run`, a model's `generate`.

    `inputs` are its keyword arguments, `limits` the most tokens of each row, `end` the token or tokens that end a row,
    `rules` logits processors, `ends` stopping criteria.
    """
    watcher = LogprobRecorder()
    made = run(
        **inputs,
        **more,
        num_beams=beams,
        max_new_tokens=max(limits),
        return_dict_in_generate=True,
        output_scores=beams > 1,
        logits_processor=[*rules, watcher],
        stopping_criteria=[RowLengthLimit(limits, lambda: watcher.prompt), *ends],
    )
    last = {end} if isinstance(end, int) else set(end)
    written = made.sequences[:, watcher.prompt :].tolist()
    rows = [_cut_at_end(ids[:limit], last) for ids, limit in zip(written, limits, strict=True)]
    if beams > 1:
        # The score of a beam is the mean log probability of its tokens, as long as no length penalty is set.
        return [
            GeneratedRow(tokens, avg_logprob=score) for tokens, score in zip(rows, made.sequences_scores.tolist(), strict=True)
        ]
    noted = watcher.finish(made.sequences)
    kept = [logprobs[: len(row) + 1] for row, logprobs in zip(rows, noted, strict=True)]
    return [GeneratedRow(row, logprobs, sum(logprobs) / len(logprobs)) for row, logprobs in zip(rows, kept, strict=True)]


def _repeat_per_row(input_ids: Any, ended: Sequence[bool]) -> Any:
    beams = len(input_ids) // len(ended)
    return input_ids.new_tensor([end for end in ended for _ in range(beams)]).bool()


def _cut_at_end(ids: list[int], ends: set[int]) -> list[int]:
    at = next((i for i, id in enumerate(ids) if id in ends), len(ids))
    return ids[:at]


class GeneratingFamily(ModelFamily):
    """Common base of the families that generate token by token."""

    loads = "AutoModelForSpeechSeq2Seq"
    abilities = {"logprobs": True, "temperature": True}

    tokens_per_second: ClassVar[float] = 16.0
    """Longest plausible text. A model that writes more is stuck in a loop; the densest scripts stay below."""
    spare_tokens: ClassVar[int] = 32
    """On top of that, for what a family writes besides the text."""

    def batch_key(self, window: Window) -> Hashable:
        """Sampling is one setting per call."""
        return window.request.temperature

    def generate_rows(self, inputs: Any, windows: Sequence[Window]) -> list[GeneratedRow]:
        """Tokens for each window; `inputs` are the keyword arguments of the model's `generate`."""
        temperature = windows[0].request.temperature
        sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
        return generate(
            self.model.generate,
            inputs,
            ends=[CancelCriterion(windows)],
            beams=1 if temperature > 0 else self.options.beam_size,
            end=self.model.generation_config.eos_token_id,
            limits=[self._find_limit(window) for window in windows],
            **sampling,
        )

    def _find_limit(self, window: Window) -> int:
        return int(window.seconds * self.tokens_per_second) + self.spare_tokens

    def build_row_result(self, window: Window, row: GeneratedRow, text: str, language: str) -> EngineResult:
        """A row as one segment."""
        made = build_result(window, text, language, avg_logprob=row.avg_logprob, tokens=row.tokens)
        for segment in made.segments:
            segment.temperature = window.request.temperature
            segment.unended = len(row.tokens) >= self._find_limit(window)
            if window.request.logprobs:
                segment.token_logprobs = build_tokens(self.processor.tokenizer, row.tokens, row.logprobs)
        return made


class Seq2SeqFamily(GeneratingFamily):
    """Moonshine and Moonshine Streaming: one language each, known by the model's name."""

    known_as = "moonshine"

    tokens_per_second = 6.5
    spare_tokens = 4

    def transcribe(self, windows: Sequence[Window]) -> list[EngineResult]:
        """Decode the windows as one batch."""
        rows = self.generate_rows(self.extract_features(windows, padding=True), windows)
        texts = self.processor.batch_decode([row.tokens for row in rows], skip_special_tokens=True)
        return [
            self.build_row_result(window, row, text, self.options.language)
            for window, row, text in zip(windows, rows, texts, strict=True)
        ]
