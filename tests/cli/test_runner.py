"""The command `runner`, up to the start of the runner."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eardrum import config
from eardrum.cli import runner
from eardrum.cli.processes import format_replicas
from eardrum.errors import ConfigError

TOKEN = "0123456789abcdef0123"


def load_settings(folder: Path, **models: object) -> config.Settings:
    (folder / "config.yaml").write_text(json.dumps({"models": models}))
    return config.load_settings(folder / "config.yaml", environment={})


@pytest.mark.parametrize(
    ("listen", "address"),
    [("0.0.0.0:8101", ("0.0.0.0", 8101)), ("[::1]:9", ("::1", 9)), ("gpu1:0", ("gpu1", 0))],
)
def test_addresses_to_listen_on(listen: str, address: tuple[str, int]) -> None:
    assert runner.parse_address(listen) == address


@pytest.mark.parametrize(
    "listen", ["", "8101", ":8101", "gpu1", "gpu1:", "gpu1:port", "gpu1:99999", "http://gpu1:1", "a@b:1", "a:1/x"]
)
def test_what_is_no_address(listen: str) -> None:
    with pytest.raises(ConfigError, match="must be HOST:PORT"):
        runner.parse_address(listen)


def test_who_needs_a_token() -> None:
    for host in ("127.0.0.1", "localhost", "::1", "127.1.2.3"):
        runner.check_token("", host)
    for host in ("0.0.0.0", "::", "gpu1", "192.168.1.2"):
        runner.check_token(TOKEN, host)
        with pytest.raises(ConfigError, match=f"Every client that can connect to {host}"):
            runner.check_token("", host)
    with pytest.raises(ConfigError, match="fewer than 16 characters"):
        runner.check_token("short", "127.0.0.1")


def test_a_token_is_a_files_text_without_its_end_of_line(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert runner.read_token(tmp_path / "token") == TOKEN
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        runner.read_token(tmp_path / "none")


def test_the_servers_own_config_serves_for_its_runners(tmp_path: Path) -> None:
    entry = {"source": "moonshine-tiny-en", "replicas": {"addresses": ["http://gpu1:1"], "token": TOKEN}}
    model, token = runner.find_local_model(load_settings(tmp_path, m=entry), "m")
    assert (model.id, model.engine, token) == ("m", "moonshine", TOKEN)
    assert model.source
    assert (model.source / "tokenizer.bin").is_file()


def test_which_models_a_runner_cannot_serve(tmp_path: Path) -> None:
    settings = load_settings(tmp_path, chat={"cmd": "serve ${PORT}"}, big={"source": "large-v3"})
    with pytest.raises(ConfigError, match="chat is served by another program"):
        runner.find_local_model(settings, "chat")
    with pytest.raises(ConfigError, match="big is not on this machine: run `eardrum pull"):
        runner.find_local_model(settings, "big")


def test_replicas_as_lines() -> None:
    replicas = [
        {"address": "http://gpu1:8101", "state": "ready", "requests": 1, "device": "cuda", "detail": None},
        {
            "address": "http://gpu22:8101",
            "state": "silent",
            "requests": 0,
            "device": None,
            "detail": "it does not answer, for 4 s",
        },
    ]
    assert "\n".join(format_replicas({"id": "turbo", "replicas": replicas})) == (
        "\nturbo: 1 of 2 replicas ready\n"
        "  http://gpu1:8101   ready, 1 request, cuda\n"
        "  http://gpu22:8101  silent, 0 requests: it does not answer, for 4 s"
    )
    assert list(format_replicas({"id": "turbo"})) == []


def test_replicas_on_a_cluster_as_lines() -> None:
    ready = {"name": "m/1", "address": "http://10.0.0.2:4711", "node": "10.0.0.2/77b2e0d4", "state": "ready", "requests": 0}
    waiting = {"name": "m/2", "address": None, "node": None, "state": "starting", "requests": 0, "device": None}
    replicas = [{**ready, "device": "cuda", "detail": None}, {**waiting, "detail": "no node has 1 GPU"}]
    assert list(format_replicas({"id": "m", "replicas": replicas}))[1:] == [
        "  http://10.0.0.2:4711  ready, 0 requests, cuda, on 10.0.0.2/77b2e0d4",
        "  m/2                   starting, 0 requests: no node has 1 GPU",
    ]


def test_the_variable_with_the_token_is_no_setting() -> None:
    assert config.load_settings(environment={"EARDRUM_RUNNER_TOKEN": TOKEN}).models == {}
