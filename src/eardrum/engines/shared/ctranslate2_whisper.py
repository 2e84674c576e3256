"""Runs a Whisper in CTranslate2: reads its folder, encodes and decodes batches, and measures the best number of threads."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from msgspec import Struct

from eardrum.engines import cuda
from eardrum.engines.base import Audio, ClaimIdleTime, Device
from eardrum.engines.shared.whisper_rules import (
    FRAMES_PER_SECOND,
    TIME_STEP_S,
    DecodedText,
    Features,
    SpecialTokens,
    compute_compression_ratio,
)
from eardrum.errors import ModelLoadError
from eardrum.units import count_usable_cores

FRAMES, HOP, REACH = 3000, 160, 400
"""Frames per window, samples from one frame to the next, and samples per frame."""
DYNAMIC_RANGE, QUIETEST = 2.0, -1.5
"""Of log-mel features: nothing lies further below the loudest, nor lower at all."""
MOST_TOKENS = 448

LIBRARY = "CTranslate2"
CUDA = re.compile(r"cuda|cublas|cudnn|libnv|out of memory", re.IGNORECASE)
"""Words in CTranslate2's errors that are about the GPU."""

BASE_WIDTH = 512
"""Length of the encoder's vectors in Whisper base."""

PREFERRED = {"cpu": ("int8", "float32"), "cuda": ("float16", "int8_float32", "float32")}
"""Compute types that `auto` takes, the first that the device has."""


class SearchSettings(Struct, frozen=True):
    """How text is searched for."""

    beam_size: int
    best_of: int
    patience: float
    length_penalty: float
    repetition_penalty: float
    no_repeat_ngram_size: int
    suppress_tokens: tuple[int, ...]

    def build_settings(self, temperature: float) -> dict[str, Any]:
        """CTranslate2's words for it."""
        common = {
            "length_penalty": self.length_penalty,
            "repetition_penalty": self.repetition_penalty,
            "no_repeat_ngram_size": self.no_repeat_ngram_size,
        }
        if temperature:
            sampling = {"num_hypotheses": self.best_of, "sampling_topk": 0, "sampling_temperature": temperature}
            return common | {"beam_size": 1} | sampling
        return common | {"beam_size": self.beam_size, "patience": self.patience}


class CTranslate2Encoding:
    """The encoder's output for a batch, in one tensor or several; rows of it can be taken without encoding again."""

    def __init__(self, views: Sequence[Any], library: Any):
        self._views = views
        self._library = library

    def select_rows(self, numbers: Sequence[int]) -> Any:
        """Return these rows, in this order, as CTranslate2's tensor."""
        if len(self._views) == 1 and list(numbers) == list(range(self._views[0].shape[0])):
            return self._views[0]
        arrays = [np.array(view.to_device(self._library.Device.cpu).to(self._library.DataType.float32)) for view in self._views]
        return self._library.StorageView.from_array(np.ascontiguousarray(np.concatenate(arrays)[list(numbers)]))


class CTranslate2Whisper:
    """A loaded model with its tokenizer. Every method may be called from several threads."""

    def __init__(
        self,
        library: Any,
        model: Any,
        folder: WhisperFolder,
        search: SearchSettings,
        *,
        threads: int,
        reserved_workers: int = 0,
        shortens_context: bool = False,
    ):
        from faster_whisper.feature_extractor import FeatureExtractor
        from faster_whisper.tokenizer import Tokenizer
        from faster_whisper.transcribe import get_suppressed_tokens

        self._library = library
        self._model = model
        self._tokenizer = folder.tokenizer
        self._speaking = Tokenizer
        self._extractor = FeatureExtractor(feature_size=model.n_mels)
        self.special = folder.special
        self.multilingual: bool = model.is_multilingual
        self.aligns = bool(folder.config.get("alignment_heads"))
        self.device: str = model.device
        self.compute_type: str = model.compute_type
        self.threads = threads
        """Of each worker on a CPU; 0 is CTranslate2's choice."""
        self.integer_on_cpu: bool = model.device == "cpu" and model.compute_type.startswith("int")
        """Products of 8 or 16 bits: the encoder computes them no faster for many rows at once than for each, the decoder does."""
        self.shortens_context = shortens_context
        """Whether less than 30 s is encoded where the audio is shorter."""
        self.reserved_workers = reserved_workers
        """Workers beyond `workers`, which share the cores with them."""
        self.workers: int = model.num_workers - reserved_workers
        self.reload: WhisperReload | None = None
        """Loads the same weights with other threads; None if their number is given."""
        self._search = search
        # Symbols and annotations that are not speech; -1 stands for those in the model's own config.
        self._never = [-1, *get_suppressed_tokens(self._choose_splitter("en"), [-1]), *search.suppress_tokens]

    @classmethod
    def open(
        cls,
        source: Path,
        search: SearchSettings,
        *,
        device: str,
        device_index: list[int],
        compute_type: str,
        threads: int,
        workers: int,
        shorten_context: bool | None,
        **settings: Any,
    ) -> Self:
        """Load the folder `source`; `settings` go to CTranslate2 as they are. On a CPU and with integers, two workers share the
        cores if neither `threads` nor `workers` is set, until `tune_threads` has found what is best. `shorten_context` has
        effect on a CPU; None is for the size of model with which it was compared.

        Raises:
            ModelLoadError: a file is missing, damaged or of another model, or the device does not support an option.
        """
        import ctranslate2

        device = _choose_device(find_ctranslate2_device(device, device_index).name, device_index, ctranslate2)
        if settings.get("flash_attention") and device == "cpu":
            raise ModelLoadError(
                "flash_attention is for NVIDIA GPUs (Ampere or newer), and this model runs on the CPU: leave it out."
            )
        compute_type = _choose_compute_type(compute_type, device, device_index, ctranslate2)
        folder = WhisperFolder.read(source)
        settings |= {"device": device, "device_index": device_index, "compute_type": compute_type}

        # With floating point numbers clips are decoded in batches with files, and what `default` is shows when it is loaded.
        reserved = 1 if device == "cpu" and compute_type.startswith(("int", "default")) else 0

        def load(threads: int, workers: int, files: dict[str, bytes] | None) -> Any:
            workers += reserved
            return _load_model(source, ctranslate2, intra_threads=threads, inter_threads=workers, files=files, **settings)

        # Only for integers: with floating point numbers batches are worth it, and keep all cores busy.
        tunable = device == "cpu" and compute_type.startswith("int") and not (threads or workers)
        if tunable:
            threads = max(1, (cores := count_usable_cores()) // WORKERS)
            workers = cores // threads
        started = time.perf_counter()
        loaded = load(threads, workers or 1, folder.files)
        model = cls(
            ctranslate2,
            loaded,
            folder,
            search,
            threads=threads,
            reserved_workers=reserved,
            shortens_context=_decide_shortening(shorten_context, ctranslate2, loaded),
        )
        if tunable:
            model.reload = WhisperReload(load, source, time.perf_counter() - started)
        return model

    def tune_threads(self, claim: ClaimIdleTime) -> None:
        """Time a lone window with other numbers of threads, on a second instance of the model, and keep the best number.

        Raises:
            TuningPostponed: by `claim`.
        """
        assert self.reload
        reload, taken = self.reload, 0.0

        def seconds(threads: int) -> float:
            nonlocal taken
            here = threads == self.threads
            claim(ROUNDS * taken + (0.0 if here else reload.load_s), 0 if here else reload.memory)
            model = self._model if here else reload.load(threads, 1)
            taken = time_window(self._library, model, self.special, FRAMES, self._search.beam_size)
            return taken

        threads = choose_thread_count(cores := count_usable_cores(), seconds)
        if threads != self.threads:
            claim(reload.load_s, reload.memory)
            self._model = reload.load(threads, cores // threads)
            self.threads, self.workers = threads, cores // threads

    def extract_features(self, audio: Audio) -> Features:
        """Log-mel of at most 30 s of audio: shape [bands, frames]."""
        most = FRAMES * HOP
        audio = audio[:most]
        # Frames of the silence after the audio are all alike: `encode` adds them.
        features: Features = self._extractor(audio, padding=min(REACH + -len(audio) % HOP, most - len(audio)))
        return features

    def encode(self, features: Sequence[Features]) -> CTranslate2Encoding:
        """Encode rows of features [bands, frames]; short ones are filled up with silence to 30 s."""
        return self.encode_short(features, FRAMES)

    def encode_short(self, features: Sequence[Features], frames: int) -> CTranslate2Encoding:
        """Encode rows of features [bands, frames]; those with less than `frames` are filled up with silence to so many."""
        rows = [_pad_features(row, frames) for row in features]
        # One by one where that costs no more: a batch would take memory for all.
        batches = [row[None] for row in rows] if self.integer_on_cpu else [np.stack(rows)]
        # With several GPUs, the one for the next call is not known.
        elsewhere = self._model.device == "cuda" and len(self._model.device_index) > 1
        views = [self._model.encode(self._library.StorageView.from_array(batch), to_cpu=elsewhere) for batch in batches]
        return CTranslate2Encoding(views, self._library)

    def detect_languages(self, encoded: CTranslate2Encoding, rows: Sequence[int]) -> list[dict[str, float]]:
        """The probability of each language, for each of these rows."""
        found = self._model.detect_language(encoded.select_rows(rows))
        return [{token[2:-2]: probability for token, probability in languages} for languages in found]

    def decode(
        self, encoded: CTranslate2Encoding, rows: Sequence[int], prompts: list[list[int]], temperature: float
    ) -> list[DecodedText]:
        """Decode these rows; prompts must agree on where the text begins."""
        results: list[Any] = self._model.generate(
            encoded.select_rows(rows),
            prompts,
            return_scores=True,
            return_no_speech_prob=True,
            max_length=MOST_TOKENS,
            suppress_tokens=self._never,
            **self._search.build_settings(temperature),
        )
        return [self._build_decoding(result, temperature) for result in results]

    def align(
        self,
        encoded: CTranslate2Encoding,
        rows: Sequence[int],
        beginning: list[int],
        texts: list[list[int]],
        seconds: Sequence[float],
    ) -> list[tuple[list[float], list[float]]]:
        """When each text token begins, and the end, in seconds; and each token's probability given those before it.

        `texts` must not be empty; `seconds` is how much of each row is audio.
        """
        frames = [max(2, min(FRAMES, round(s * FRAMES_PER_SECOND))) for s in seconds]
        results = self._model.align(encoded.select_rows(rows), beginning, texts, frames)
        aligned = []
        for result, text in zip(results, texts, strict=True):
            begins: dict[int, float] = {}
            for token, step in result.alignments:
                begins.setdefault(token, step * TIME_STEP_S)
            starts = [begins[number] for number in range(len(text) + 1)]
            aligned.append((starts, list(result.text_token_probs)))
        return aligned

    def measure_batch_size(self, most: int) -> int:
        """Time batches of up to `most` windows, and return the largest that is worth decoding together; 1 if none is."""
        decode = DecodingTimer(self._library, self._model, self.special, self._search.beam_size)
        return choose_batch_size([size for size in BATCH_SIZES if size <= most], decode.measure_window)

    def encode_text(self, text: str) -> list[int]:
        """The text as tokens, without special ones."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return self.special.strip_special(ids)  # a prompt may spell special ones out

    def decode_text(self, tokens: Sequence[int]) -> str:
        """The tokens' text, without times and special tokens."""
        text: str = self._tokenizer.decode(self.special.strip_special(tokens))
        return text

    def split_pieces(self, tokens: list[int], language: str) -> list[tuple[str, int]]:
        """Text tokens as words and punctuation marks, each with its number of tokens."""
        words, parts = self._choose_splitter(language).split_to_word_tokens(tokens)
        return [(word, len(part)) for word, part in zip(words, parts, strict=True)]

    def _choose_splitter(self, language: str) -> Any:
        return self._speaking(self._tokenizer, self.multilingual, "transcribe", language)

    def _build_decoding(self, result: Any, temperature: float) -> DecodedText:
        tokens = result.sequences_ids[0]
        # Whisper's mean counts the end token too.
        logprob = result.scores[0] * len(tokens) ** self._search.length_penalty / (len(tokens) + 1)
        ratio = compute_compression_ratio(self.decode_text(tokens).strip())
        return DecodedText(tokens, logprob, result.no_speech_prob, ratio, temperature)


def _decide_shortening(choice: bool | None, library: Any, model: Any) -> bool:
    """Decide whether less than 30 s is encoded: on a CPU, as chosen, else by models of the size with which texts were compared.

    The encoder of a GPU takes next to nothing, and recordings of any length are decoded there together.
    """
    if model.device != "cpu":
        return False
    if choice is not None:
        return choice
    encoded = model.encode(library.StorageView.from_array(np.zeros((1, model.n_mels, FRAMES_PER_SECOND), np.float32)))
    return int(encoded.shape[-1]) == BASE_WIDTH


def _pad_features(features: Features, frames: int) -> Features:
    silence = max(float(features.max()) - DYNAMIC_RANGE, QUIETEST)
    return np.pad(features, ((0, 0), (0, frames - features.shape[1])), constant_values=silence)


def find_ctranslate2_device(device: str, indices: Sequence[int]) -> Device:
    """Find the device for CTranslate2: a GPU if it can use one and the options do not exclude it.

    Raises:
        DeviceError: `device` is cuda, and it sees none.
    """
    import ctranslate2 as library

    if device == "cpu":
        return Device("cpu")
    try:
        if count := library.get_cuda_device_count():
            for index in indices:  # it counts GPUs with which it can do nothing
                library.get_supported_compute_types("cuda", min(index, count - 1))
            cuda.preload_libraries(cuda.CUBLAS_12)
            return Device("cuda")
        library.get_supported_compute_types("cuda", 0)  # raises with the reason if there is none
        error = cuda.build_device_error(LIBRARY, "it sees none")
    except (RuntimeError, ValueError) as cause:
        error = cuda.build_device_error(LIBRARY, cause)
        count = _count_gpus(library)
    if device == "cuda":
        raise error
    return Device("cpu", error.message if count or cuda.is_gpu_present() else "")


def _count_gpus(library: Any) -> int:
    try:
        return int(library.get_cuda_device_count())
    except RuntimeError:
        return 1  # something is there that does not answer


class WhisperReload(Struct, frozen=True):
    """Loads a model's weights once more."""

    loader: Callable[[int, int, dict[str, bytes] | None], Any]
    source: Path
    load_s: float
    """Seconds that it took the first time."""

    @property
    def memory(self) -> int:
        """Bytes that it takes at most: the file's, and the weights in their new format."""
        return 2 * (self.source / WEIGHTS).stat().st_size

    def load(self, threads: int, workers: int) -> Any:
        """Load them for so many workers with so many threads each."""
        return self.loader(threads, workers, WhisperFolder.read(self.source).files)


def _load_model(source: Path, library: Any, *, device: str, **settings: Any) -> Any:
    try:
        return library.models.Whisper(str(source), device=device, **settings)
    except (RuntimeError, ValueError) as error:
        if device == "cuda" and CUDA.search(str(error)):
            raise cuda.build_device_error(LIBRARY, error) from error
        raise ModelLoadError(
            f"CTranslate2 cannot load {source / WEIGHTS}: {error}. If the file is damaged, fetch the model again."
        ) from error


def _choose_device(device: str, indices: list[int], library: Any) -> str:
    there = 1 if device == "cpu" else library.get_cuda_device_count()
    if wrong := [index for index in indices if not 0 <= index < there]:
        count = f"there are {there} GPUs, counted from 0" if device == "cuda" else "on the CPU there is only 0"
        raise ModelLoadError(f"device_index {wrong[0]} does not exist: {count}.")
    return device


def _choose_compute_type(requested: str, device: str, indices: list[int], library: Any) -> str:
    have = set.intersection(*(set(library.get_supported_compute_types(device, index)) for index in indices))
    if requested == "auto":
        return next(kind for kind in PREFERRED[device] if kind in have)
    if requested not in have | {"default"}:
        raise ModelLoadError(
            f"compute_type {requested!r} is not supported on {device} here: use one of {', '.join(sorted(have))}."
        )
    return requested


WEIGHTS, CONFIG, TOKENIZER, VOCABULARY = "model.bin", "config.json", "tokenizer.json", "vocabulary"


class WhisperFolder(Struct, frozen=True):
    """A folder whose small files were read."""

    path: Path
    config: dict[str, Any]
    tokenizer: Any
    special: SpecialTokens
    files: dict[str, bytes] | None
    """Corrected files for the library to read instead of the folder's; None if the folder is fine."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read `config.json`, the vocabulary and the tokenizer.

        Raises:
            ModelLoadError: a file is missing, damaged or of another model; the message says what to do.
        """
        config, vocabulary = _read_config(path), _read_vocabulary(path)
        tokenizer, special = _read_tokenizer(path, vocabulary)
        files = None
        if not config.get("lang_ids"):  # converters left them out for a while; without them no language is detected
            config["lang_ids"] = list(special.languages.values())
            files = {file.name: file.read_bytes() for file in (path / WEIGHTS, *path.glob(f"{VOCABULARY}.*"))}
            files[CONFIG] = json.dumps(config).encode()
        return cls(path, config, tokenizer, special, files)


def _find_needed_file(source: Path, name: str, advice: str) -> Path:
    if not source.is_dir():
        raise ModelLoadError(f"{source} is not a folder: a faster-whisper model is one with {WEIGHTS}, {CONFIG} and {TOKENIZER}.")
    path = source / name
    if not path.is_file():
        raise ModelLoadError(f"{source} is not a faster-whisper model: {name} is missing. {advice}")
    if not os.access(path, os.R_OK):
        raise ModelLoadError(f"{path} cannot be read: give the user that runs the server the right to.")
    return path


def _read_json(path: Path, kind: type) -> Any:
    try:
        if isinstance(data := json.loads(path.read_bytes()), kind):
            return data
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ModelLoadError(f"{path} is damaged: {error}. Fetch the model again.") from error
    raise ModelLoadError(f"{path} is not of a CTranslate2 model. Fetch the model again.")


def _read_config(source: Path) -> dict[str, Any]:
    _find_needed_file(source, WEIGHTS, "Fetch the model again.")
    config: dict[str, Any] = _read_json(_find_needed_file(source, CONFIG, "Fetch the model again."), dict)
    return config


def _read_vocabulary(source: Path) -> list[str]:
    text = source / f"{VOCABULARY}.txt"  # what older converters wrote
    if text.is_file():
        return text.read_text(encoding="utf-8").split("\n")
    vocabulary: list[str] = _read_json(_find_needed_file(source, f"{VOCABULARY}.json", "Fetch the model again."), list)
    return vocabulary


def _read_tokenizer(source: Path, vocabulary: list[str]) -> tuple[Any, SpecialTokens]:
    from tokenizers import Tokenizer

    path = _find_needed_file(
        source, TOKENIZER, f"Copy it there from the model that was converted (converters: --copy_files {TOKENIZER})."
    )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a plain Exception
        raise ModelLoadError(f"{path} is damaged: {error}. Fetch the model again.") from error
    try:
        special = SpecialTokens.of(tokenizer.token_to_id)
    except LookupError as error:
        raise ModelLoadError(f"{path} is not Whisper's: it has no token {error}. Fetch the model again.") from error
    if vocabulary[special.start : special.start + 1] != ["<|startoftranscript|>"]:
        raise ModelLoadError(f"{path} and {source / VOCABULARY}.* are of different models. Fetch the model again.")
    return tokenizer, special


WORKERS = 2
"""Workers that share the cores before anything is measured."""

BATCH_SIZES = (4,)
"""Worth trying; the memory for the encoder's output, as the decoder reads it, grows with them."""

MIN_GAIN = 1.06
"""Speed-up per window that makes batches worth their memory, and the wait of a first clip that meets one."""


def choose_batch_size(sizes: Iterable[int], seconds: Callable[[int], float]) -> int:
    """The largest of rising `sizes` up to which each makes a window cheaper by enough. `seconds` are those of one window."""
    best, cost = 1, seconds(1)
    for size in sizes:
        if cost < MIN_GAIN * (cost := seconds(size)):
            break
        best = size
    return best


class DecodingTimer:
    """Times windows in batches of any size, in CPU time: other work on the machine would decide by the clock.

    The encoder's time is that of one window. The decoder's is measured on few tokens, the start of the text apart.
    """

    def __init__(self, library: Any, model: Any, special: SpecialTokens, beam_size: int):
        self._library = library
        self._model = model
        self._special = special
        self._beam_size = beam_size
        started = time.process_time()
        encoded = model.encode(library.StorageView.from_array(np.zeros((1, model.n_mels, FRAMES), np.float32)))
        self._encode_s = time.process_time() - started
        self._row = np.array(encoded.to(library.DataType.float32))

    def measure_window(self, size: int) -> float:
        """CPU seconds for half a minute of speech, decoded with `size - 1` others."""
        rows = self._library.StorageView.from_array(np.repeat(self._row, size, axis=0))

        def timed(tokens: int) -> float:
            started = time.process_time()
            # CTranslate2 keeps half of the length for earlier text.
            self._model.generate(
                rows,
                [[self._special.start]] * size,
                beam_size=self._beam_size,
                max_length=2 * tokens,
                suppress_tokens=[self._special.end],
            )
            return time.process_time() - started

        timed(1)  # allocates
        rounds = 1 if self._encode_s > LONG_S else ROUNDS
        first, more = (min(timed(tokens) for _ in range(rounds)) for tokens in (1, 1 + STEPS))
        return self._encode_s + (first + (more - first) / STEPS * TEXT) / size


SLOWER = 1.4
"""How much longer than with the best number of threads a lone window may take for the sake of decoding several at once."""

PART = 4
"""A quarter of a window is enough to time the encoder on."""

LONG_S = 10.0
"""A window that takes this long is timed once: noise matters less."""

ROUNDS = 3
"""Timings of which the shortest counts."""

STEPS, TEXT = 8, 80
"""Tokens decoded to time the decoder, and those of half a minute of speech."""


def list_thread_counts(cores: int) -> Iterator[int]:
    """Numbers of threads worth trying, the largest first."""
    yield cores
    yield from (2**power for power in reversed(range(cores.bit_length())) if 2**power < cores)


def choose_thread_count(cores: int, seconds: Callable[[int], float]) -> int:
    """The fewest threads with which a lone window takes not much longer than with the best number of them."""
    best, chosen = float("inf"), cores
    for threads in list_thread_counts(cores):
        taken = seconds(threads)
        best = min(best, taken)
        if taken > SLOWER * best:
            break
        chosen = threads
    return chosen


def time_window(library: Any, model: Any, special: SpecialTokens, frames: int, beam_size: int) -> float:
    """About how long `model` takes for a window of `frames` frames."""
    beginning = [special.start]
    silence = np.zeros((1, model.n_mels, frames // PART), np.float32)

    def timed() -> float:
        started = time.perf_counter()
        encoded = model.encode(library.StorageView.from_array(silence))
        between = time.perf_counter()
        # CTranslate2 keeps half of the length for earlier text.
        model.generate(encoded, [beginning], beam_size=beam_size, max_length=2 * STEPS, suppress_tokens=[special.end])
        return (between - started) * PART + (time.perf_counter() - between) * TEXT / STEPS

    first = timed()  # which also allocates
    return first if first > LONG_S else min(timed(), timed())
