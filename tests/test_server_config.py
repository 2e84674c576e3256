"""A server on several files, as somebody who comes from llama-swap starts it."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests

from tests.commands import run_eardrum
from tests.conftest import run_server
from tests.recordings import SPEECH_TEXT, encode_speech

pytestmark = pytest.mark.slow


def test_several_files(tmp_path: Path) -> None:
    main, folder = tmp_path / "main.yaml", tmp_path / "conf.d"
    folder.mkdir()
    main.write_text("log_level: warn\nmodels:\n  moonshine-tiny-en:\n    aliases: ['${env.NAME}']\nttl: 1800\n")
    (folder / "llms.yaml").write_text("models: {qwen: {proxy: 'http://127.0.0.1:9', chekEndpoint: none}}")
    with run_server("--config", str(main), "--config-dir", str(folder), NAME="ears") as server:
        listed = requests.get(f"{server.address}/v1/models", timeout=20).json()
        assert {"moonshine-tiny-en", "qwen"} <= {model["id"] for model in listed["data"]}
        assert server.post_audio(encode_speech("wav"), model="ears").json()["text"] == SPEECH_TEXT
        server.wait_for_log(f"{main}:5: Unknown setting ttl. There is a models.NAME.ttl: is it in the right place?")
        server.wait_for_log(f"{folder}/llms.yaml:1: Unknown setting models.qwen.chekEndpoint. Did you mean checkEndpoint?")
        assert "INFO" not in server.log


def test_a_mistake_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("models:\n  a:\n    cmd: server --port ${PROT}\n")
    done = run_eardrum("serve", "--config", str(file))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"eardrum: {file}:3: models.a.cmd: There is no macro ${{PROT}}. Did you mean ${{PORT}}?\n"
