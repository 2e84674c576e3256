from __future__ import annotations

import json
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.engines.errors_in_text import count_word_errors
from bench.peers.contenders import KINDS, OURS, _read_mappings, measure_group_mb
from bench.peers.ggml import MAGIC, read_tokens, read_weights, rename_weights, write_ggml
from bench.peers.measuring import HeardText, PeerLog
from bench.peers.report import ROWS, compare_errors, compute_ratios, format_report
from bench.peers.speech import ECHOES, QUICK, SpeechSource
from tests.models import build, tiny_whisper

PEER = "batched"


def test_only_rounds_that_both_finished_are_compared() -> None:
    assert compute_ratios({0: 1.0, 1: 3.0, 3: 2.0}, {1: 6.0, 2: 1.0, 3: 2.0}) == [0.5, 1.0]
    assert compute_ratios({0: 1.0}, {}) == []


def create_texts(name: str, **heard: str) -> list[HeardText]:
    said = {"a": "red green blue black", "b": "hot cold", "c": "eins zwei drei"}
    return [HeardText(name, file, "de" if file == "c" else "en", said[file], text) for file, text in heard.items()]


def test_word_errors_are_those_of_files_that_both_heard() -> None:
    heard = create_texts(OURS, a="red green blue black", b="hot gold") + create_texts(PEER, a="red green", c="eins zwei drei")
    found = compare_errors(heard, PEER, count_word_errors)
    assert found
    assert (found.words, found.ours, found.peer, found.worse) == (4, 0, 2, False)
    assert compare_errors(heard, PEER, count_word_errors, "de") is None
    assert compare_errors(heard, "wyoming", count_word_errors) is None


def test_more_errors_are_worse_only_beyond_chance() -> None:
    ours = [HeardText(OURS, str(number), "en", "red green blue", "red green") for number in range(20)]
    theirs = [replace(one, contender=PEER, heard=one.said) for one in ours]
    found = compare_errors(ours + theirs, PEER, count_word_errors)
    assert found
    assert found.worse
    assert found.low == found.high == pytest.approx(100 / 3)
    one_better = [replace(one, heard=one.said if one.file != "3" else one.heard) for one in ours]
    by_chance = compare_errors(one_better + theirs, PEER, count_word_errors)
    assert by_chance
    assert (by_chance.ours, by_chance.peer, by_chance.worse) == (1, 0, False)


def test_repeated_prompts_are_counted_apart() -> None:
    plain = create_texts(OURS, a="red green blue black") + create_texts(PEER, a="red green blue black")
    repeated = [replace(one, file="r", heard="red", repeats=True) for one in plain]
    found = [compare_errors(plain + repeated, PEER, count_word_errors, repeats=repeats) for repeats in (False, True)]
    assert [one and one.ours for one in found] == [0, 3]


def test_the_report_names_what_is_over_its_target_and_what_failed() -> None:
    log = PeerLog(failed=["wyoming-faster-whisper (start, round 1): it ended"], others={"clips": [0.01, 0.2, 0.1]})
    for turn, (ours, theirs) in enumerate([(1.0, 2.0), (1.0, 1.0), (3.0, 3.3)]):
        log.add("clips-cpu", OURS, turn, ours)
        log.add("clips-cpu", PEER, turn, theirs)
        log.add("shorter-cpu", OURS, turn, ours)
        log.add("shorter-cpu", PEER, turn, 2 * ours)
        log.add("rest-clip", OURS, turn, 300)
    log.heard += create_texts(OURS, a="red green blue black") + create_texts(PEER, a="red green blue")
    text = format_report(log, [PEER], count_word_errors, QUICK)
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert "**0.91** (0.50 to 1.00) | ≤ 0.70 of each | **no** |" in text
    assert "| 45 s of speech, CPU | 0.50 (0.50 to 0.50) | ≤ 0.85 of batched | yes |" in text
    assert "memory at rest after the first clip | 300 MB |  |" in text  # without a peer's value only among the values
    assert "0 (0.0 %) : 1 (25.0 %) of 4" in lines[KINDS[PEER].label]
    assert "-25.00" in lines[KINDS[PEER].label]
    assert "clips 0.10 (at most 0.20)" in text
    assert "Failed: wyoming-faster-whisper (start, round 1): it ended" in text


def test_every_target_is_of_a_contender() -> None:
    for row in ROWS:
        assert row.targets.keys() <= {"all", *KINDS}
        assert len({row.name for row in ROWS}) == len(ROWS)


@pytest.mark.slow
def test_rounds_send_all_recordings_in_all_languages_and_the_same_files_again_if_asked_again() -> None:
    source, again = (SpeechSource(None, "", QUICK) for _ in range(2))
    assert source.languages[0] == "en"
    assert set(source.languages) == {"en", "de", "es", "fr"}
    sent = [clip for turn in range(17) for clip in source.take_clips(turn)]
    assert len({clip.name for clip in sent}) == 83
    assert {clip.language for clip in sent[:12]} == {"en", "de", "es", "fr"}
    assert {source.join_prompts(turn).language for turn in range(4)} == {"en", "de", "es", "fr"}
    assert source.join_prompts(1) == again.join_prompts(1)
    assert source.join_prompts(0).text != source.join_prompts(4).text
    echo = source.repeat_prompts(0)
    assert echo.text == " ".join([echo.text[: len(echo.text) // ECHOES].strip()] * ECHOES)
    assert len(echo.pcm) / 32_000 == pytest.approx(echo.seconds, abs=0.2)
    assert source.build_long(0, 45).seconds == pytest.approx(45, abs=15)


@pytest.mark.slow
def test_a_folder_of_ones_own_is_sent_instead() -> None:
    source = SpeechSource(Path("tests/data/phone"), "en", QUICK)
    assert source.languages == ["en"]
    assert source.build_long(0, 45).text


def test_memory_that_processes_share_counts_once() -> None:
    text = (
        "7f00-7f01 r--p 00001000 fe:01 42 /lib/x.so\nSize: 8 kB\nRss: 8 kB\nPrivate_Dirty: 0 kB\nVmFlags: rd\n"
        "7f02-7f03 rw-p 00000000 00:00 0 [heap]\nRss: 4 kB\nPrivate_Dirty: 4 kB\n"
    )
    assert list(_read_mappings(text)) == [
        ("fe:01 42 00001000", {"Rss": 8, "Private_Dirty": 0}),
        ("", {"Rss": 4, "Private_Dirty": 4}),
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_memory_of_one_process_is_its_resident_memory() -> None:
    import psutil  # noqa: PLC0415

    assert measure_group_mb([psutil.Process().pid]) == pytest.approx(psutil.Process().memory_info().rss / 1e6, rel=0.05)


@pytest.mark.slow
def test_a_model_becomes_ggml_with_every_weight_and_token(tmp_path: Path) -> None:
    folder = build("faster_whisper", tmp_path / "model")
    write_ggml(folder, tmp_path / "model.ggml")
    data = (tmp_path / "model.ggml").read_bytes()
    assert struct.unpack("<12i", data[:48]) == (MAGIC, 51865, 1500, 96, 6, 2, 448, 96, 6, 3, 80, 1)
    _, arrays = tiny_whisper.load_weights()
    written = dict(rename_weights(read_weights(folder / "model.bin")))
    for name in arrays.keys() - {"encoder.positional_embedding"}:
        expected = np.asarray(arrays[name], np.float32)
        found = np.asarray(written[name], np.float32).reshape(expected.shape)
        assert np.abs(found - expected).max() <= np.abs(expected).max() / 100, name  # int8 in the folder
    assert read_tokens(folder)[:3] == [b"!", b'"', b"#"]
    assert len(read_tokens(folder)) == 50257


@pytest.mark.slow
def test_the_command_measures_two_servers_and_names_a_missing_one(tmp_path: Path) -> None:
    folder = build("faster_whisper", tmp_path / "model")
    words = ["peers", "--quick", "--model", str(folder), "--recordings", "tests/data/hearing", "--name", str(tmp_path / "found")]
    words += ["--only", "batched,wyoming", "--figures", "clips,files", "--peers-python", sys.executable]
    done = subprocess.run([sys.executable, "-m", "bench", *words], capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    assert f"wyoming is left out: {sys.executable} has no wyoming_faster_whisper" in done.stdout
    assert (tmp_path / "found.md").read_text() == done.stdout
    numbers = json.loads((tmp_path / "found.json").read_text())
    assert numbers["failed"] == []
    rows = {"start", "rest-clip", "clips-cpu", "clip-p50", "shorter-cpu", "longer-wall", "longer-first", "file-peak"}
    assert rows <= numbers["ratios"].keys()
    assert all(0 < numbers["ratios"][row]["batched"][0] < 100 for row in rows)
    texts = [heard for name, _, _, _, heard in numbers["heard"] if name == OURS]
    assert len(texts) == QUICK.clips + 2
    assert all(texts)
