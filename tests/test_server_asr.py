"""whisper-asr-webservice's API as its clients use it: Bazarr from the search to the subtitle, and films of any size."""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from threading import Thread

import numpy as np
import psutil
import pysrt
import pytest
import requests
from babelfish import Language, LanguageReverseError

from tests.conftest import ServerUnderTest, run_server, wait_for
from tests.recordings import (
    RATE,
    SPEECH_TEXT,
    create_silence,
    encode,
    encode_announcements,
    encode_pcm,
    encode_speech,
    load_speech,
)
from tests.test_server_uploads import WireClient

pytestmark = pytest.mark.slow

HOUR = 3600
SEND_TIMEOUT_S, ANSWER_TIMEOUT_S = 60, 3600
"""Bazarr's are 5 s and an hour. Python's sockets allow the first one for the whole upload, which takes 2 s on a machine that does
nothing else, and more beside other tests."""
MIB = 1 << 20


@pytest.fixture(scope="module")
def server() -> Iterator[ServerUnderTest]:
    with run_server() as started:
        yield started


@dataclass
class BazarrProvider:
    """The requests of Bazarr's provider for Whisper, and what it makes of the answers."""

    address: str

    def __post_init__(self) -> None:
        self.session = requests.Session()
        self.session.headers["User-Agent"] = "Subliminal/2.1"

    def test_connection(self) -> str:
        """The button in its settings."""
        answer = self.session.get(f"{self.address}/status", timeout=SEND_TIMEOUT_S, allow_redirects=False)
        return str(answer.json()["version"])

    def detect_language(self, sound: bytes, video: str | None = None) -> Language:
        answer = self._post("detect-language", sound, video, {})
        found = answer.json()
        try:
            return Language.fromalpha2(found["language_code"])
        except LanguageReverseError:
            return Language.fromname(found["detected_language"])

    def fetch_subtitle(self, sound: bytes, video: str | None = None, *, task: str = "transcribe", language: str = "en") -> bytes:
        return self._post("asr", sound, video, {"task": task, "language": language, "output": "srt"}).content

    def _post(self, path: str, sound: bytes, video: str | None, query: dict[str, str]) -> requests.Response:
        return self.session.post(
            f"{self.address}/{path}",
            params=query | {"encode": "false", "video_file": {video}},
            files={"audio_file": sound},
            timeout=(SEND_TIMEOUT_S, ANSWER_TIMEOUT_S),
        )


def create_film(seconds: int, *starts: int) -> bytes:
    """Raw samples of silence, with 18 s of speech at these seconds."""
    film = bytearray(2 * RATE * seconds)
    speech = encode_pcm(load_speech())
    for start in starts:
        film[2 * RATE * start : 2 * RATE * start + len(speech)] = speech
    return bytes(film)


def measure_memory(server: ServerUnderTest) -> int:
    """Bytes of the server and its runners."""
    return sum(process.memory_info().rss for process in (psutil.Process(server.process.pid), *server.list_runners()))


@pytest.mark.endurance
def test_a_film_of_two_hours_as_bazarr_sends_it(server: ServerUnderTest) -> None:
    bazarr = BazarrProvider(server.address)
    assert bazarr.test_connection().startswith("Eardrum ")
    film = create_film(2 * HOUR, 10, HOUR, 2 * HOUR - 30)
    assert len(film) > 230_000_000
    assert bazarr.detect_language(film, "/filme/Überschön - 映画.mkv").alpha3 == "und"  # this model knows English alone
    subtitle = bazarr.fetch_subtitle(film, "/filme/Überschön - 映画.mkv")
    cues = pysrt.from_string(subtitle.decode(), error_handling=pysrt.ERROR_RAISE)
    assert " ".join(cue.text for cue in cues) == " ".join([SPEECH_TEXT] * 3)
    starts = [cue.start.ordinal / 1000 for cue in cues if cue.text.startswith("And Mr.")]
    assert starts == [pytest.approx(start + 0.3, abs=0.2) for start in (10, HOUR, 2 * HOUR - 30)]
    assert measure_memory(server) < 500 * MIB
    assert not server.list_open_files()


def test_silence_has_no_subtitle_and_no_language(server: ServerUnderTest) -> None:
    bazarr = BazarrProvider(server.address)
    silence = create_film(600)
    assert bazarr.fetch_subtitle(silence) == b""
    assert bazarr.detect_language(silence).alpha3 == "und"


@pytest.mark.parametrize(
    ("query", "sound"),
    [
        ({"language": "xx"}, encode_pcm(load_speech())),
        ({"task": "translate", "language": "de"}, encode_pcm(load_speech())),
        ({}, b""),
        ({"encode": "true"}, b"no sound " * 5000),
        ({"output": "ass"}, encode_pcm(load_speech())),
        ({"model": "nope"}, encode_pcm(load_speech())),
    ],
)
def test_what_fails_is_no_subtitle(server: ServerUnderTest, query: dict[str, str], sound: bytes) -> None:
    answer = requests.post(
        f"{server.address}/asr", params={"output": "srt", "encode": "false"} | query, files={"audio_file": sound}, timeout=60
    )
    assert answer.status_code in (400, 404)
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    with pytest.raises(pysrt.Error):
        pysrt.from_string(answer.text, error_handling=pysrt.ERROR_RAISE)


def test_scripts_and_speakr(server: ServerUnderTest) -> None:
    url, form = f"{server.address}/asr", {"audio_file": ("Gespräch 1.mp3", encode_speech("mp3"), "audio/mpeg")}
    words = requests.post(url, params={"output": "txt", "encode": "true", "vad_filter": "true"}, files=form, timeout=60)
    assert words.text.replace("\n", " ").strip() == SPEECH_TEXT
    speakers = {"diarize": "true", "enable_diarization": "true", "return_speaker_embeddings": "true", "max_speakers": "3"}
    answer = requests.post(
        url, params={"encode": "True", "task": "transcribe", "output": "json", **speakers}, files=form, timeout=60
    )
    assert answer.json()["text"] == SPEECH_TEXT
    assert answer.json()["language"] == "en"
    assert answer.headers["x-eardrum-ignored"] == "return_speaker_embeddings"
    body = answer.json()
    assert {segment.pop("speaker") for segment in body["segments"]} == {"A"}
    assert answer.headers["asr-engine"] == "moonshine"
    assert answer.headers["content-disposition"].startswith('attachment; filename="Gespr%C3%A4ch%201.mp3.json"')
    in_form = requests.post(url, data={"output": "json", "model": "moonshine-tiny-en"}, files=form, timeout=60)
    raw = requests.post(url, params={"output": "json"}, data=encode_speech("mp3"), timeout=60)
    for same in (in_form.json(), raw.json()):
        # The last digits of probabilities depend on which windows shared a batch.
        for segment, expected in zip(same["segments"], body["segments"], strict=True):
            assert segment.pop("avg_logprob") == pytest.approx(expected["avg_logprob"], abs=0.001)
            assert segment == {key: value for key, value in expected.items() if key != "avg_logprob"}
        assert same.keys() == body.keys()
        assert (same["text"], same["language"]) == (body["text"], body["language"])


def test_a_sender_that_stalls_for_five_seconds_is_waited_for(server: ServerUnderTest) -> None:
    sound = encode_speech("wav")
    head = b'--x\r\nContent-Disposition: form-data; name="audio_file"; filename="audio_file"\r\n\r\n'
    client = WireClient(server, "/asr?output=txt")
    try:
        client.send_bytes(head + sound[: len(sound) // 2])
        time.sleep(6)
        client.send_bytes(sound[len(sound) // 2 :] + b"\r\n--x--\r\n")
        client.end_body()
        assert b"himself." in client.receive_until(b"himself.")
    finally:
        client.socket.close()


def test_a_busy_server_reads_a_film_to_its_end_and_then_says_so() -> None:
    sound = encode_speech("wav")
    head = b'--x\r\nContent-Disposition: form-data; name="audio_file"; filename="audio_file"\r\n\r\n'
    with run_server("--set", "limits.requests=1") as server:
        first = WireClient(server, "/asr?output=txt")
        try:
            first.send_bytes(head + sound[:-1000])
            wait_for(lambda: requests.get(f"{server.address}/health", timeout=10).json()["models"][0]["requests"] == 1)
            answer = requests.post(
                f"{server.address}/asr",
                params={"output": "srt", "encode": "false"},
                files={"audio_file": bytes(150_000_000)},
                timeout=(SEND_TIMEOUT_S, 60),
            )
            assert answer.status_code == 503
            assert answer.text.startswith("Error: ")
            assert int(answer.headers["retry-after"]) > 0
            first.send_bytes(sound[-1000:] + b"\r\n--x--\r\n")
            first.end_body()
            assert b"himself." in first.receive_until(b"himself.")
        finally:
            first.socket.close()


CLUSTER, SEGMENT = b"\x1f\x43\xb6\x75", b"\x18\x53\x80\x67"
"""Identifiers in Matroska."""


def split_film(film: bytes) -> tuple[bytes, bytes]:
    """The two parts of a Matroska file between which another element may stand; its length counts no more."""
    at = film.index(SEGMENT) + len(SEGMENT)
    film = film[:at] + b"\x01" + b"\xff" * 7 + film[at + 8 :]
    second = film.index(CLUSTER, film.index(CLUSTER) + 1)
    return film[:second], film[second:]


@pytest.mark.endurance
@pytest.mark.timeout(900)
def test_a_film_of_three_gigabytes(server: ServerUnderTest) -> None:
    """Nearly all of it is no sound, as in a film."""
    before, after = split_film(encode(np.concatenate([load_speech(), create_silence(3), load_speech()]), "mkv"))
    picture = 3 << 30
    void = b"\xec\x01" + picture.to_bytes(7, "big")
    head = b'--x\r\nContent-Disposition: form-data; name="audio_file"; filename="film.mkv"\r\n\r\n' + before + void
    tail = after + b"\r\n--x--\r\n"
    most = [0]
    connection = http.client.HTTPConnection(*server.host, timeout=600)
    watching = Thread(target=watch_memory, args=(server, most, done := []))
    watching.start()
    try:
        pieces = (head, *repeat(bytes(MIB), picture // MIB), tail)
        headers = {"Content-Type": "multipart/form-data; boundary=x", "Content-Length": str(sum(map(len, pieces)))}
        connection.request("POST", "/asr?output=txt", body=iter(pieces), headers=headers)
        text = connection.getresponse().read().decode()
    finally:
        done.append(True)
        watching.join()
        connection.close()
    assert text.replace("\n", " ").strip() == f"{SPEECH_TEXT} {SPEECH_TEXT}"
    assert most[0] < 600 * MIB


def watch_memory(server: ServerUnderTest, most: list[int], done: list[bool]) -> None:
    while not done:
        most[0] = max(most[0], measure_memory(server))
        time.sleep(0.2)


@pytest.mark.endurance
def test_a_long_film_is_read_while_it_is_decoded(server: ServerUnderTest) -> None:
    """No piece waits for the model for as long as Bazarr lets a send take."""
    answer = requests.post(
        f"{server.address}/asr?output=tsv", files={"audio_file": encode_announcements(300)}, timeout=(SEND_TIMEOUT_S, 600)
    )
    rows = [line.split("\t") for line in answer.text.splitlines()]
    assert rows[0] == ["start", "end", "text"]
    assert all(int(start) <= int(end) for start, end, _ in rows[1:])
    assert int(rows[-1][1]) > 280_000
