"""Manifests of `eardrum batch`."""

from __future__ import annotations

import asyncio
import json
import os
import resource
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from aiohttp import web
from typer.testing import CliRunner

from eardrum.cli import batch
from eardrum.cli.batch import ManifestRun, compare_words, read_manifest
from eardrum.cli.main import app
from eardrum.cli.processes import call_server
from eardrum.client import ServerAnswerError
from eardrum.errors import ConfigError
from tests.api.proxy.conftest import run_gateway
from tests.upstreams import UpstreamCall, fake_upstream

NOBODY = "http://127.0.0.1:9"
"""The address of a server that is not there."""


def write(folder: Path, *lines: object) -> Path:
    manifest = folder / "m"
    manifest.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return manifest


def test_each_kind_of_line(tmp_path: Path) -> None:
    nemo = {"audio_filepath": "n.wav", "duration": 2.5, "text": "ja", "source_lang": "de", "taskname": "ast"}
    request = {"custom_id": "r", "url": "/v1/audio/translations", "body": {"file_url": "https://x.example/r", "hotwords": ["a"]}}
    lines = list(read_manifest(write(tmp_path, "a b.mp3", "", nemo, request, {**nemo, "id": "own"}, "https://x.example/p")))
    assert [line.key for line in lines] == ["1", "3", "r", "own", "6"]
    plain, first, second = lines[:3]
    assert plain.audio == str(tmp_path / "a b.mp3")
    assert (first.form, first.text, first.duration) == ({"language": ["de"], "task": ["translate"]}, "ja", 2.5)
    assert (second.audio, second.form) == ("https://x.example/r", {"hotwords": ["a"], "task": ["translate"]})


def test_a_manifest_of_an_editor_on_windows(tmp_path: Path) -> None:
    manifest = tmp_path / "m"
    manifest.write_bytes('\ufeff{"audio_filepath": "ä.wav"}\r\n\r\nb.wav\r\n'.encode())
    assert [Path(line.audio).name for line in read_manifest(manifest)] == ["ä.wav", "b.wav"]


def test_a_path_may_be_no_text_but_json_may_not(tmp_path: Path) -> None:
    manifest = tmp_path / "m"
    manifest.write_bytes(b"K\xf6ln.mp3\na.mp3\n")
    first, second = read_manifest(manifest)
    assert (os.fsencode(first.audio), second.audio) == (os.fsencode(tmp_path / "K") + b"\xf6ln.mp3", str(tmp_path / "a.mp3"))
    manifest.write_bytes(b'a.mp3\n{"audio_filepath": "K\xf6ln.mp3"}\n')
    with pytest.raises(ConfigError, match="line 2 is not UTF-8"):
        list(read_manifest(manifest))


def test_ids_may_begin_with_0(tmp_path: Path) -> None:
    lines = [{"id": number, "audio_filepath": f"{number}.wav"} for number in range(3)]
    assert [line.key for line in read_manifest(write(tmp_path, *lines))] == ["0", "1", "2"]


def test_a_field_of_a_request_that_is_null_is_not_sent(tmp_path: Path) -> None:
    body = {"file": None, "file_url": "https://x.example/r", "language": None, "hotwords": ["a", None], "temperature": 0}
    (line,) = read_manifest(write(tmp_path, {"custom_id": "r", "body": body}))
    assert {name: values for name, values in line.form.items() if values} == {"hotwords": ["a"], "temperature": ["0"]}


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["{"], "m:1: the line is not JSON"),
        ([{"id": "a", "audio_filepath": "x"}, {"id": "a", "audio_filepath": "y"}], "m:2: the key 'a' is there twice"),
        ([{"text": "x"}], "m:1: the line has neither"),
        ([{"audio_filepath": "x", "offset": 3}], "`offset` is not supported"),
        ([{"body": {}}], "must name the audio once"),
        (["x" * 300], "m:1: the line is longer than 200"),
    ],
)
def test_a_line_that_is_wrong_is_told_before_anything_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[object], says: str
) -> None:
    monkeypatch.setattr(batch, "MAX_LINE_CHARS", 200)
    with pytest.raises(ConfigError, match=says):
        list(read_manifest(write(tmp_path, *lines)))


def test_a_manifest_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        list(read_manifest(tmp_path / "none"))
    (tmp_path / "m").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        list(read_manifest(tmp_path / "m"))


@pytest.mark.parametrize("text", ["my notes\n", "my notes", "[1]\n", '{"a": 1}\nmy notes\n', '{\n  "a": 1\n}'])
def test_a_file_that_holds_something_else_is_left_as_it_is(tmp_path: Path, text: str) -> None:
    output = tmp_path / "notes"
    output.write_text(text)
    with pytest.raises(ConfigError, match="something else"), ManifestRun([], output, {}, 1):
        pass
    assert output.read_text() == text


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ('{"id": "1"}\n{"id": "2", "pred', '{"id": "1"}\n'),
        ('{"id": "1"}\n{"id": "2"}', '{"id": "1"}\n{"id": "2"}\n'),
        ('{"a": 1}', '{"a": 1}\n'),
    ],
    ids=["within a line", "before its end", "nothing else"],
)
def test_only_a_line_that_was_cut_off_is_removed(tmp_path: Path, text: str, left: str) -> None:
    output = tmp_path / "results"
    output.write_text(text)
    with ManifestRun([], output, {}, 1):
        pass
    assert output.read_text() == left


def test_a_line_that_was_cut_off_within_a_letter_is_removed(tmp_path: Path) -> None:
    output = tmp_path / "results"
    whole = '{"id": "1", "pred_text": "Köln."}\n'.encode()
    output.write_bytes(whole + '{"id": "2", "pred_text": "Kö'.encode()[:-1])
    with ManifestRun([], output, {}, 1):
        pass
    assert output.read_bytes() == whole


def test_results_are_never_written_into_the_manifest(tmp_path: Path) -> None:
    manifest = write(tmp_path, {"id": "a", "audio_filepath": "a.wav"})
    before = manifest.read_bytes()
    done = CliRunner().invoke(app, ["batch", str(manifest), "-o", str(tmp_path / "." / "m"), "--server", NOBODY])
    assert isinstance(done.exception, ConfigError)
    assert "is the manifest itself" in done.exception.message
    assert manifest.read_bytes() == before


def test_a_full_disk_is_an_error_after_which_the_same_command_continues(tmp_path: Path) -> None:
    manifest = write(tmp_path, *(f"missing-{number}.wav" for number in range(9)))
    command = ["batch", str(manifest), "--server", NOBODY, "--parallel", "1"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    try:
        done = CliRunner().invoke(app, command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert isinstance(done.exception, ConfigError), done.exception
    assert "m.out.jsonl cannot be written: File too large." in done.exception.message
    assert CliRunner().invoke(app, command).exit_code == 1, "the recordings are missing"
    results = [json.loads(line) for line in (tmp_path / "m.out.jsonl").read_text().splitlines()]
    assert [result["id"] for result in results] == [str(number) for number in range(1, 10)]
    assert all("No such file" in result["error"] for result in results)


def test_lines_of_results_that_failed_are_a_manifest_too(tmp_path: Path) -> None:
    """With a name that is not UTF-8, which only an escape in JSON can hold, and a duration that is no number."""
    name = os.fsdecode(b"\xff.wav")
    (tmp_path / "a.wav").write_bytes(b"a")
    (tmp_path / name).write_bytes(b"b")
    failed: dict[str, Any] = {"id": "a", "audio_filepath": "a.wav", "error": "It broke.", "words": ["one"], "duration": "soon"}
    lines = [failed, {"audio_filepath": name, "id": 0, "custom_id": "x"}, {**failed, "id": "c", "audio_filepath": "c.wav"}]

    async def answer(call: UpstreamCall, _: web.Request) -> web.Response:
        return web.json_response({"task": "transcribe", "duration": 1.0, "text": call.file.decode(), "segments": []})

    output = tmp_path / "results"
    manifest = write(tmp_path, *lines)
    with (
        fake_upstream(answer) as upstream,
        run_gateway(models={"m": {"proxy": upstream.url}}, default_model="m", jobs={"dir": tmp_path / "jobs"}) as gateway,
        (run := ManifestRun(list(read_manifest(manifest)), output, {}, 1)),
    ):
        asyncio.run(call_server(gateway.url, "", None, run.run))
    assert (run.totals.done, run.totals.failed) == (2, 1)
    results = {result["id"]: result for result in map(json.loads, output.read_text("utf-8").splitlines())}
    assert [results[id].get("pred_text") for id in ("a", "0", "c")] == ["a", "b", None]
    assert ["error" in results[id] for id in ("a", "0", "c")] == [False, False, True]
    assert results["c"]["error"].endswith("c.wav: No such file or directory.")
    assert results["0"]["audio_filepath"] == name
    with (again := ManifestRun(list(read_manifest(manifest)), output, {}, 1)):
        pass
    assert again.totals == run.totals
    asyncio.run(call_server(NOBODY, "", None, again.run))  # nothing is left to be sent


def test_each_recording_gets_its_own_text_although_the_manifest_has_changed(tmp_path: Path) -> None:
    """Plain lines have their numbers as keys, and `find` lists files in any order."""
    for name in "abc":
        (tmp_path / f"{name}.wav").write_bytes(name.encode())
    released = Event()

    async def answer(call: UpstreamCall, _: web.Request) -> web.Response:
        while not released.is_set():  # noqa: ASYNC110 -- the event belongs to another thread
            await asyncio.sleep(0.01)
        return web.json_response({"task": "transcribe", "duration": 1.0, "text": call.file.decode(), "segments": []})

    output = tmp_path / "results"
    with (
        fake_upstream(answer) as upstream,
        run_gateway(models={"m": {"proxy": upstream.url}}, default_model="m", jobs={"dir": tmp_path / "jobs"}) as gateway,
    ):

        async def begin() -> None:
            working = asyncio.ensure_future(call_server(gateway.url, "", None, run.run))
            while len(journal.read_text().splitlines()) < 2:  # noqa: ASYNC110 -- it is a file
                await asyncio.sleep(0.01)
            working.cancel()
            await asyncio.wait([working])

        with (run := ManifestRun(list(read_manifest(write(tmp_path, "a.wav", "b.wav"))), output, {}, 2)):
            journal = tmp_path / "results.journal"
            asyncio.run(begin())
        released.set()
        with (run := ManifestRun(list(read_manifest(write(tmp_path, "c.wav", "a.wav", "b.wav"))), output, {}, 2)):
            asyncio.run(call_server(gateway.url, "", None, run.run))
    results = [json.loads(line) for line in output.read_text().splitlines()]
    assert {Path(result["audio_filepath"]).name: result["pred_text"] for result in results} == {
        "a.wav": "a",
        "b.wav": "b",
        "c.wav": "c",
    }


def test_a_model_that_the_server_lacks_ends_the_command_but_not_for_a_line_of_its_own(tmp_path: Path) -> None:
    """No recording is marked as failed, so the same command continues once the model is there."""
    for name in "ab":
        (tmp_path / f"{name}.wav").write_bytes(name.encode())

    async def answer(call: UpstreamCall, _: web.Request) -> web.Response:
        return web.json_response({"task": "transcribe", "duration": 1.0, "text": call.file.decode(), "segments": []})

    own = {"custom_id": "own", "body": {"file": "b.wav", "model": "lacking"}}
    output = tmp_path / "results"
    with (
        fake_upstream(answer) as upstream,
        run_gateway(models={"m": {"proxy": upstream.url}}, default_model="m", jobs={"dir": tmp_path / "jobs"}) as gateway,
    ):
        lines = list(read_manifest(write(tmp_path, own, "a.wav")))
        with (run := ManifestRun(lines, output, {"model": ["large-v9"]}, 1)), pytest.raises(ServerAnswerError, match="large-v9"):
            asyncio.run(call_server(gateway.url, "", None, run.run))
        with (run := ManifestRun(lines, output, {"model": ["m"]}, 1)):
            asyncio.run(call_server(gateway.url, "", None, run.run))
    assert (run.totals.done, run.totals.failed) == (1, 1)


def test_a_result_of_another_recording_is_not_taken_for_a_line(tmp_path: Path) -> None:
    output = tmp_path / "results"
    output.write_text('{"audio_filepath": "elsewhere/a.wav", "id": "1", "pred_text": "A."}\n')
    with ManifestRun(list(read_manifest(write(tmp_path, "a.wav", "b.wav"))), output, {}, 1):
        pass
    changed = list(read_manifest(write(tmp_path, "b.wav", "a.wav")))
    with pytest.raises(ConfigError, match="the manifest has changed"), ManifestRun(changed, output, {}, 1):
        pass


def test_word_errors_do_not_count_case_and_punctuation() -> None:
    assert compare_words("One, two three.", "one two  THREE") == (3, 0)
    assert compare_words("one two three", "one too three four") == (3, 2)
    assert compare_words("", "one") == (0, 1)
