"""A Whisper of OpenAI's own package: encodes, detects, decodes and aligns rows of a batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from eardrum.engines.base import Audio
from eardrum.engines.pytorch.alignment import FRAME_S, filled, token_starts
from eardrum.engines.whisper.rounds import Features
from eardrum.engines.whisper.rules import Decoding, Special
from eardrum.transcription import SpeechTask


class OpenAIModel:
    """A loaded model with its tokenizer. The package hooks into the model while it decodes: one thread at a time."""

    def __init__(self, whisper: Any, torch: Any, model: Any, *, half: bool, beam_size: int, best_of: int):
        self._whisper = whisper
        self._torch = torch
        self._model = model
        self._half = half
        self._beam_size = beam_size
        self._best_of = best_of
        self.multilingual: bool = model.is_multilingual
        self._tokenizer = self._speaking("en")
        self.special = Special.of(self._tokenizer.special_tokens.get)

    def features(self, audio: Audio) -> Features:
        """Log-mel of at most 30 s of audio, filled up with silence: shape [bands, 3000]."""
        samples = self._whisper.pad_or_trim(self._torch.from_numpy(audio))
        bands = self._model.dims.n_mels
        features: Features = self._whisper.log_mel_spectrogram(samples, bands, device=self._model.device).cpu().numpy()
        return features

    def encode(self, features: Sequence[Features]) -> Any:
        """Encode rows of features [bands, frames]; a tensor [b, frames, width]."""
        batch = self._torch.from_numpy(filled(features)).to(self._model.device)
        return self._model.encoder(batch.half() if self._half else batch)

    def detect(self, encoded: Any, rows: Sequence[int]) -> list[dict[str, float]]:
        """The probability of each language, for each of these rows."""
        _, found = self._whisper.detect_language(self._model, encoded[rows], self._tokenizer)
        return list(found)

    def decode(self, encoded: Any, rows: Sequence[int], prompts: list[list[int]], temperature: float) -> list[Decoding]:
        """Decode these rows. The package takes one prompt per call, so rows with equal ones go together."""
        alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for number, prompt in enumerate(prompts):
            alike[tuple(prompt)].append(number)
        found: dict[int, Decoding] = {}
        for prompt_, numbers in alike.items():
            options = self._options(prompt_, temperature)
            results = self._whisper.decode(self._model, encoded[[rows[number] for number in numbers]], options)
            for number, result in zip(numbers, results, strict=True):
                found[number] = Decoding(
                    result.tokens, result.avg_logprob, result.no_speech_prob, result.compression_ratio, temperature
                )
        return [found[number] for number in range(len(prompts))]

    def _options(self, prompt: tuple[int, ...], temperature: float) -> Any:
        """The package's words for a prompt of tokens."""
        at = prompt.index(self.special.start)
        language, task = "en", SpeechTask.TRANSCRIBE
        if self.multilingual:
            language = next(code for code, token in self.special.languages.items() if token == prompt[at + 1])
            task = SpeechTask.TRANSLATE if prompt[at + 2] == self.special.translate else task
        return self._whisper.DecodingOptions(
            task=task.value,
            language=language,
            prompt=list(prompt[1:at]) or None,
            temperature=temperature,
            beam_size=None if temperature or self._beam_size == 1 else self._beam_size,
            best_of=self._best_of if temperature and self._best_of > 1 else None,
            fp16=self._half,
        )

    def align(
        self, encoded: Any, rows: Sequence[int], beginning: list[int], texts: list[list[int]], seconds: Sequence[float]
    ) -> list[tuple[list[float], list[float]]]:
        """When each text token begins, and the end, in seconds; and each token's probability given those before it."""
        return [self._align(encoded[[row]], beginning, text, s) for row, text, s in zip(rows, texts, seconds, strict=True)]

    def _align(self, encoded: Any, beginning: list[int], text: list[int], seconds: float) -> tuple[list[float], list[float]]:
        attention: list[Any] = [None] * self._model.dims.n_text_layer
        hooks = [
            block.cross_attn.register_forward_hook(lambda _, __, output, layer=layer: attention.__setitem__(layer, output[-1][0]))
            for layer, block in enumerate(self._model.decoder.blocks)
        ]
        prompt = [*beginning, self.special.times - 1]
        ids = self._torch.tensor([[*prompt, *text, self.special.end]], device=self._model.device)
        try:
            with self._whisper.model.disable_sdpa():
                scores = self._model.logits(ids, encoded)[0].softmax(-1)
        finally:
            for hook in hooks:
                hook.remove()
        heads = self._model.alignment_heads.indices().T.tolist()
        frames = max(1, round(seconds / FRAME_S))
        weights = self._torch.stack([attention[layer][head] for layer, head in heads])[:, :, :frames].float().softmax(-1)
        starts = token_starts(weights.cpu().numpy(), len(beginning))
        probabilities = [float(row[token]) for row, token in zip(scores[len(beginning) :], text, strict=False)]
        return starts, probabilities

    def tokens(self, text: str) -> list[int]:
        """The text as tokens; one that spells special ones out means their letters."""
        return list(self._tokenizer.encode(text, disallowed_special=()))

    def text(self, tokens: Sequence[int]) -> str:
        """The tokens' text, without times and special tokens."""
        return str(self._tokenizer.decode(self.special.text(tokens)))

    def pieces(self, tokens: list[int], language: str) -> list[tuple[str, int]]:
        """Text tokens as words and punctuation marks, each with its number of tokens."""
        words, parts = self._speaking(language).split_to_word_tokens(tokens)
        return [(word, len(part)) for word, part in zip(words, parts, strict=True)]

    def _speaking(self, language: str) -> Any:
        return self._whisper.tokenizer.get_tokenizer(
            self.multilingual, num_languages=self._model.num_languages, language=language, task="transcribe"
        )
