"""Every engine through the whole server: what a client sees of it, and how it comes and goes."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jiwer
import numpy as np
import psutil
import pytest
import requests
from whisper_normalizer.basic import BasicTextNormalizer

from eardrum.engines.base import Engine, Window
from eardrum.runner.__main__ import load_engine
from eardrum.transcription import SAMPLE_RATE, TranscriptionRequest
from tests.conftest import ServerUnderTest, run_server, wait_for
from tests.models import build
from tests.models.tiny_whisper import SpokenClip, join_clips, load_clips
from tests.recordings import Samples, create_silence, encode

pytestmark = pytest.mark.slow

HEARING = [pytest.param("faster_whisper")]
"""Engines with a test model that hears. Those on PyTorch are heard in a stage of their own."""
TORCH = [pytest.param(name, marks=pytest.mark.torch) for name in ("openai_whisper", "transformers")]

ENGLISH = next(clip for clip in load_clips() if clip.language == "en")
GERMAN = next(clip for clip in load_clips() if clip.text == "Musik an.")


@pytest.fixture(scope="module", params=[*HEARING, *TORCH])
def whisper(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerUnderTest]:
    """A server with one Whisper, the default model."""
    source = build(request.param, tmp_path_factory.mktemp(request.param))
    model = {"source": str(source), "engine": request.param, "options": {"compute_type": "float32"}}
    with run_server("--set", f"models.hearing={json.dumps(model)}") as server:
        yield server


def encode_audio(*spoken: SpokenClip) -> bytes:
    return encode(join_clips([clip.name for clip in spoken]), "flac")


def test_every_utterance_is_heard_right_and_its_language_found(whisper: ServerUnderTest) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda clip: whisper.post_audio(encode_audio(clip), response_format="verbose_json").json(), load_clips())
        )
    assert [answer["text"] for answer in answers] == [clip.text for clip in load_clips()]
    languages = {"en": "english", "de": "german"}
    assert [answer["language"] for answer in answers] == [languages[clip.language] for clip in load_clips()]


@pytest.mark.endurance
@pytest.mark.timeout(900)
def test_twenty_minutes_are_no_worse_than_the_pieces(whisper: ServerUnderTest) -> None:
    """English speech with pauses of all lengths; each piece alone is heard without an error (see above).

    One percent of leeway, because the tiny model stumbles over half a minute full of commands whoever runs it: stock
    faster-whisper with its VAD had 1.8 % of such a tape wrong.
    """
    random = np.random.default_rng(2)
    english = [clip for clip in load_clips() if clip.language == "en"]
    said: list[SpokenClip] = []
    pieces: list[Samples] = []
    while sum(map(len, pieces)) < 20 * 60 * 16_000:
        said.append(english[random.integers(len(english))])
        pieces += [said[-1].samples, create_silence(random.uniform(0.4, 6.0))]
    text = whisper.post_audio(encode(np.concatenate(pieces), "flac"), within_s=800).json()["text"]
    normal = BasicTextNormalizer()
    heard = jiwer.process_words(normal(" ".join(clip.text for clip in said)), normal(text))
    assert heard.wer <= 0.01, jiwer.visualize_alignment(heard)


def test_no_worse_than_the_engine_called_directly(whisper: ServerUnderTest, request: pytest.FixtureRequest) -> None:
    (model,) = requests.get(f"{whisper.address}/health", timeout=10).json()["models"][:1]
    source = Path(requests.get(f"{whisper.address}/api/v1/backend", timeout=10).json()["info"]["source"])
    engine = load_engine(model["engine"], source, {"compute_type": "float32"})
    assert isinstance(engine, Engine)
    direct = [" ".join(s.text for s in engine.transcribe([create_window(clip)])[0].segments) for clip in load_clips()]
    served = [whisper.post_audio(encode_audio(clip)).json()["text"] for clip in load_clips()]
    normal = BasicTextNormalizer()
    references = [normal(clip.text) for clip in load_clips()]
    assert jiwer.wer(references, [normal(t) for t in served]) <= jiwer.wer(references, [normal(t) for t in direct])


def create_window(clip: SpokenClip) -> Window:
    return Window(clip.samples, 0.0, 1.0, (0.0, len(clip.samples) / SAMPLE_RATE), TranscriptionRequest())


def test_german_is_translated(whisper: ServerUnderTest) -> None:
    answer = whisper.post_audio(encode_audio(GERMAN), path="translations", response_format="verbose_json").json()
    assert (answer["task"], answer["text"].lower().strip(".")) == ("translate", "music on")


def test_subtitles_words_and_a_stream_come_from_one_recording(whisper: ServerUnderTest) -> None:
    recording = encode_audio(*[clip for clip in load_clips() if clip.language == "en"][:5])
    srt = whisper.post_audio(recording, response_format="srt").text
    assert srt.startswith("1\n00:00:0")
    assert " --> " in srt
    assert whisper.post_audio(recording, response_format="vtt").text.startswith("WEBVTT\n\n00:00:")
    answer = requests.post(
        f"{whisper.address}/v1/audio/transcriptions",
        files={"file": recording},
        data={"response_format": "verbose_json", "timestamp_granularities[]": ["word", "segment"]},
        timeout=120,
    ).json()
    times = [time for word in answer["words"] for time in (word["start"], word["end"])]
    assert "".join(word["word"] for word in answer["words"]).replace(" ", "") == answer["text"].replace(" ", "")
    assert [word["start"] for word in answer["words"]] == sorted(word["start"] for word in answer["words"])
    assert times[-1] <= answer["duration"]
    stream = whisper.post_audio(recording, stream="true").text
    events = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: ")]
    assert "".join(event["delta"] for event in events[:-1]) == events[-1]["text"] == answer["text"]


def test_languages_and_tasks_of_many_clients_do_not_mix(whisper: ServerUnderTest) -> None:
    wishes = [
        (ENGLISH, "transcriptions", {}, ENGLISH.text),
        (GERMAN, "transcriptions", {"language": "de"}, GERMAN.text),
        (GERMAN, "translations", {}, "Music on."),
        (ENGLISH, "transcriptions", {"language": "en", "temperature": "0"}, ENGLISH.text),
    ] * 3
    with ThreadPoolExecutor(len(wishes)) as pool:
        texts = list(
            pool.map(lambda wish: whisper.post_audio(encode_audio(wish[0]), path=wish[1], **wish[2]).json()["text"], wishes)
        )
    assert [text.lower().strip(".") for text in texts] == [wish[3].lower().strip(".") for wish in wishes]


def test_the_backend_says_what_it_can(whisper: ServerUnderTest) -> None:
    backend = requests.get(f"{whisper.address}/api/v1/backend", timeout=10).json()
    assert backend["info"]["model"] == "hearing"
    assert backend["backend"] in ("faster_whisper", "openai_whisper", "transformers")
    assert backend["capabilities"]["supports_translate"]
    (model,) = [m for m in requests.get(f"{whisper.address}/v1/models", timeout=10).json()["data"] if m["id"] == "hearing"]
    assert model["engine"] == backend["backend"]
    assert "translate" in model["capabilities"]["tasks"]


def test_a_model_that_is_gone_has_left_nothing_behind(whisper: ServerUnderTest) -> None:
    """Unloads the model; the gateway is what it was before, and the model comes back."""
    gateway = psutil.Process(whisper.process.pid)
    whisper.post_audio(encode_audio(ENGLISH))
    unload_model(whisper)
    rss, files = gateway.memory_info().rss, gateway.num_fds()
    for _ in range(2):
        assert whisper.post_audio(encode_audio(ENGLISH)).json()["text"] == ENGLISH.text
        assert len(whisper.list_runners()) == 1
        unload_model(whisper)
        wait_for(lambda: gateway.num_fds() <= files)
    assert gateway.memory_info().rss <= rss + 4_000_000
    wait_for(lambda: not whisper.list_open_files())


def unload_model(server: ServerUnderTest) -> None:
    assert requests.delete(f"{server.address}/api/ps/hearing", timeout=60).status_code == 200
    assert not server.list_runners()


PARROT = '''
"""A parrot: the smallest engine there could be."""

from eardrum.engines.base import Engine, EngineOptions, EngineResult
from eardrum.transcription import Capabilities, Segment
from pydantic import Field


class Parrot(Engine):
    """Says what its file says, whatever it hears."""

    requires = ("json",)
    title = "Parrots"
    layouts = (("parrot.txt",),)
    names = {"polly": "birds/polly"}
    capabilities = Capabilities(languages=("en",), max_window_s=20.0, max_batch=2)

    class Options(EngineOptions):
        """How it speaks."""

        loud: bool = Field(False, description="In capitals.")

    @classmethod
    def load(cls, source, options):
        """Read the file."""
        parrot = cls()
        text = (source / "parrot.txt").read_text()
        parrot.says = text.upper() if options.loud else text
        return parrot

    def transcribe(self, windows):
        """Say it."""
        return [EngineResult([Segment(*w.speech_span, self.says)], "en") for w in windows]
'''


@pytest.fixture
def parrots(tmp_path: Path) -> Path:
    """Another package with an engine in one file, installed on the path."""
    site = tmp_path / "site"
    (site / "birds-1.0.dist-info").mkdir(parents=True)
    (site / "birds-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: birds\nVersion: 1.0\n")
    (site / "birds-1.0.dist-info" / "entry_points.txt").write_text("[eardrum.engines]\nparrot = birds.parrot\n")
    (site / "birds").mkdir()
    (site / "birds" / "__init__.py").touch()
    (site / "birds" / "parrot.py").write_text(textwrap.dedent(PARROT))
    (tmp_path / "polly").mkdir()
    (tmp_path / "polly" / "parrot.txt").write_text("Pieces of eight.")
    return tmp_path


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "SIGILL"),
        ("import no_such_library", "no_such_library"),
        ("raise OSError('libcudart.so.12: cannot open shared object file')", "libcudart"),
    ],
)
def test_a_library_that_fails_costs_its_model_only(parrots: Path, fault: str, says: str) -> None:
    engine = parrots / "site" / "birds" / "parrot.py"
    whole = engine.read_text()
    engine.write_text(whole.replace("        parrot = cls()", f"        {fault}\n        parrot = cls()"))
    models = {"polly": {"source": str(parrots / "polly")}}
    path = f"{parrots / 'site'}:{':'.join(sys.path)}"
    with run_server(
        "--set", f"models={json.dumps(models)}", "--set", "default_model=moonshine-tiny-en", PYTHONPATH=path
    ) as server:
        failed = server.post_audio(encode_audio(ENGLISH), model="polly")
        assert failed.status_code == 500
        assert failed.json()["error"]["code"] == "model_load_failed"
        assert says in failed.json()["error"]["message"]
        assert server.post_audio(encode_audio(ENGLISH)).status_code == 200
        engine.write_text(whole)
        wait_for(lambda: server.post_audio(encode_audio(ENGLISH), model="polly").status_code == 200)


def test_an_engine_of_another_package_is_one_file(parrots: Path) -> None:
    path = f"{parrots / 'site'}:{':'.join(sys.path)}"
    model = {"source": str(parrots / "polly"), "options": {"loud": True}}
    with run_server("--set", f"models.polly={json.dumps(model)}", PYTHONPATH=path) as server:
        (found,) = [m for m in requests.get(f"{server.address}/v1/models", timeout=10).json()["data"] if m["id"] == "polly"]
        assert found["engine"] == "parrot"
        backend = requests.get(f"{server.address}/api/v1/backend?model=polly", timeout=10).json()
        assert (backend["backend"], backend["info"]["title"]) == ("parrot", "Parrots")
        assert server.post_audio(encode_audio(ENGLISH), model="polly").json()["text"] == "PIECES OF EIGHT."
    command = [sys.executable, "-c", "from eardrum.cli.main import main; main()", "engines"]
    listed = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=60, env={"PYTHONPATH": path, "COLUMNS": "200"}
    )
    assert "parrot" in listed.stdout
