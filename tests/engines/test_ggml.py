"""What the engine ggml does besides the contract: languages, hints, word times, broken files, cancelled windows."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from eardrum.engines import registry
from eardrum.engines.base import Engine, RequestContext, Window
from eardrum.engines.ggml import find_alignment_preset, split_pieces
from eardrum.engines.shared.ggml_files import GgmlHeader, read_ggml_header
from eardrum.errors import ModelLoadError
from eardrum.gateway.models.inventory import detect_engine
from eardrum.runner.__main__ import load_engine
from eardrum.transcription import SAMPLE_RATE, SpeechTask, TranscriptionRequest
from tests.models import build
from tests.models.tiny_whisper import get_clip

slow = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("ggml", tmp_path_factory.mktemp("ggml"))


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    loaded = load_engine("ggml", folder / "ggml-hearing.bin", {"beam_size": 1, "threads": 1})
    assert isinstance(loaded, Engine)
    return loaded


def create_window(clip: str, **request: object) -> Window:
    samples = get_clip(clip).samples
    return Window(samples, 0.0, 1.0, (0.0, len(samples) / SAMPLE_RATE), TranscriptionRequest(**request), RequestContext())


def transcribe(engine: Engine, window: Window) -> tuple[str, str]:
    (found,) = engine.transcribe([window])
    return found.language, " ".join(segment.text for segment in found.segments)


@slow
def test_it_hears_the_language_and_votes_for_it(engine: Engine) -> None:
    window = create_window("u07")
    assert transcribe(engine, window) == ("de", "Fünf nein bitte.")
    assert max(window.context.votes, key=window.context.votes.__getitem__) == "de"
    assert {"en", "de"} <= set(engine.capabilities.languages)


@slow
def test_a_named_language_is_not_looked_for(engine: Engine) -> None:
    window = create_window("u07", language="de")
    assert transcribe(engine, window)[0] == "de"
    assert not window.context.votes


@slow
def test_it_translates(engine: Engine) -> None:
    language, text = transcribe(engine, create_window("u07", language="de", task=SpeechTask.TRANSLATE))
    assert language == "de"
    assert text
    assert "nein" not in text.lower()


@slow
def test_hints_reach_the_model_and_no_other_request(engine: Engine) -> None:
    before = engine.transcribe([create_window("u06", language="en", logprobs=True)])[0].segments[0]
    hinted = engine.transcribe([create_window("u06", language="en", prompt="Nothing.", hotwords=("volume",), logprobs=True)])
    after = engine.transcribe([create_window("u06", language="en", logprobs=True)])[0].segments[0]
    assert [s.avg_logprob for s in hinted[0].segments] != [before.avg_logprob]
    assert after.avg_logprob == before.avg_logprob


@slow
def test_words_are_where_faster_whisper_hears_them(engine: Engine, tmp_path: Path) -> None:
    other = load_engine("faster_whisper", build("faster_whisper", tmp_path), {})
    assert isinstance(other, Engine)
    (ours,), (theirs,) = (
        [segment.words for segment in each.transcribe([create_window("u04", language="en", words=True)])[0].segments]
        for each in (engine, other)
    )
    assert [word.word for word in ours] == [word.word for word in theirs]
    assert np.allclose([word.start for word in ours], [word.start for word in theirs], atol=0.15)


@slow
def test_a_cancelled_window_ends_early_and_leaves_the_model_whole(engine: Engine) -> None:
    samples = np.tile(get_clip("u04").samples, 8)[: 30 * SAMPLE_RATE]
    unwanted = Window(samples, 0.0, 1.0, (0.0, 30.0), TranscriptionRequest(language="en"), RequestContext())
    timer = threading.Timer(0.01, lambda: setattr(unwanted, "cancelled", True))
    timer.start()
    (found,) = engine.transcribe([unwanted])
    timer.join()
    assert not found.segments
    assert transcribe(engine, create_window("u06", language="en"))[1] == "Set the volume up."


@slow
def test_a_process_with_a_model_ends_well(folder: Path) -> None:
    """The library holds a function of Python's, and may not let go of it after Python has ended."""
    program = "import sys; from pathlib import Path; from eardrum.runner.__main__ import load_engine\n"
    program += "engine = load_engine('ggml', Path(sys.argv[1]), {}); print(engine.device, engine.compute_type)"
    done = subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "cpu float16\n", "")


def test_files_are_recognised_by_how_they_begin(tmp_path: Path) -> None:
    other, model = tmp_path / "pytorch_model.bin", tmp_path / "any.bin"
    other.write_bytes(b"PK\3\4lmgg")
    assert detect_engine(tmp_path) == ""
    model.write_bytes(b"lmgg")
    assert detect_engine(tmp_path) == detect_engine(model) == "ggml"
    assert detect_engine(other) == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GGUF" + bytes(100), "whisper.cpp reads its own"),
        (b"PK" + bytes(100), "begins otherwise"),
        (b"", "begins otherwise"),
        (b"lmgg", "ends before"),
        (b"lmgg" + bytes(44) + b"\xff" * 8, "ends before"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match=rf"model\.bin.*{message}"):
        read_ggml_header(path)


@slow
def test_the_last_array_must_be_complete(folder: Path, tmp_path: Path) -> None:
    """whisper.cpp would take what is missing for zeros."""
    path = tmp_path / "short.bin"
    path.write_bytes((folder / "ggml-hearing.bin").read_bytes()[:-1])
    with pytest.raises(ModelLoadError, match=r"short\.bin is damaged"):
        load_engine("ggml", path, {})


@slow
def test_sizes_that_do_not_fit_are_told_by_the_library(folder: Path, tmp_path: Path) -> None:
    content = bytearray((folder / "ggml-hearing.bin").read_bytes())
    content[8:12] = (750).to_bytes(4, "little")
    path = tmp_path / "odd.bin"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"whisper\.cpp cannot load .*odd\.bin"):
        load_engine("ggml", path, {})


@slow
def test_of_several_files_one_must_be_named(folder: Path, tmp_path: Path) -> None:
    for name in ("a.bin", "b.bin"):
        shutil.copy(folder / "ggml-hearing.bin", tmp_path / name)
    with pytest.raises(ModelLoadError, match=r"2 ggml models.*a\.bin"):
        load_engine("ggml", tmp_path, {})


@pytest.mark.parametrize(
    ("sizes", "name", "preset"),
    [
        ((51865, 512, 6, 6, 80), "ggml-base", "BASE"),
        ((51864, 768, 12, 12, 80), "ggml-small.en", "SMALL_EN"),
        ((51865, 1280, 32, 32, 80), "ggml-large-v1", "LARGE_V1"),
        ((51865, 1280, 32, 32, 80), "ggml-large-v2-q5_0", "LARGE_V2"),
        ((51866, 1280, 32, 32, 128), "ggml-large-v3", "LARGE_V3"),
        ((51866, 1280, 32, 4, 128), "ggml-large-v3-turbo", "LARGE_V3_TURBO"),
        ((51866, 1280, 32, 2, 128), "ggml-distil-large-v3", "N_TOP_MOST"),
        ((51865, 192, 4, 2, 80), "ggml-hearing", "N_TOP_MOST"),
    ],
)
def test_the_heads_follow_from_the_sizes(sizes: tuple[int, ...], name: str, preset: str) -> None:
    vocab, width, audio, text, mels = sizes
    header = GgmlHeader(vocab, 1500, width, 8, audio, 448, width, 8, text, mels, 1)
    assert find_alignment_preset(header, name) == preset


def test_pieces_are_words_or_characters() -> None:
    assert split_pieces([b" vol", b"ume", b" up", b"."], spaced=True) == [(" volume", 2), (" up", 1), (".", 1)]
    character = "\u4e94".encode()
    assert split_pieces([character[:2], character[2:], character], spaced=False) == [("\u4e94", 2), ("\u4e94", 1)]


def test_names_lead_to_repositories_of_one_model() -> None:
    assert registry.find_card("ggml").names["ggml-distil-large-v3"] == "distil-whisper/distil-large-v3-ggml"
