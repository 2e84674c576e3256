"""Making API keys."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
import yaml
from typer.testing import CliRunner

from eardrum import config
from eardrum.cli.main import app
from eardrum.client import ServerAnswerError
from eardrum.config import yaml_files
from eardrum.config.api_keys import KeyScope, hash_key
from eardrum.errors import ConfigError
from eardrum.gateway.key_usage import KeyRegistry
from tests.api.proxy.conftest import run_gateway


def test_a_new_key_is_printed_once_with_an_entry_that_loads() -> None:
    command = ["key", "new", "--name", "phone: mine", "--scope", "transcribe", "--scope", "models", "--models", "whisper-*"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    key = done.output.split()[0]
    assert len(key) > 40
    entry = yaml.safe_load(done.output[done.output.index("api_keys:") :])
    assert entry["api_keys"][0]["key"] == f"sha256:{hash_key(key).hex()}"
    settings = config.load_settings(overrides=entry, environment={})
    found = KeyRegistry(settings.api_keys).find_usage(key)
    assert found
    assert (found.name, found.settings.scopes, found.settings.models) == (
        "phone: mine",
        (KeyScope.TRANSCRIBE, KeyScope.MODELS),
        ("whisper-*",),
    )


NAMES = [
    *("123", "true", "null", "~", "1e3", ".5", "0x1f", "1_000", "1:30", "no", "2027-01-31", "=", "<<", ".inf"),
    *("a: b", "a:", "x #y", "#x", "- a", "'a'", '"a"', "[a]", "{a}", "*a", "&a", "!a", "@a", "`a`", "%a", "|", ">", "?"),
    *("Küche ☕", " a", "a ", "a\nb", "a\tb", "\x07", "a" * 300),
]


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_the_same_in_the_config(name: str) -> None:
    done = CliRunner().invoke(app, ["key", "new", f"--name={name}", f"--models={name}", "--scope=chat", "--max-requests=4"])
    assert done.exit_code == 0, done.output
    printed = done.output[done.output.index("api_keys:") :]
    (key,) = config.load_settings(overrides=yaml_files.parse_value(printed), environment={}).api_keys
    assert (key.name, key.models, key.scopes, key.max_requests) == (name, (name,), (KeyScope.CHAT,), 4)
    assert yaml.safe_load(printed)["api_keys"][0]["name"] == name, "as other programs read YAML"


def test_limits_of_a_new_key_are_in_its_entry() -> None:
    limits = ["--requests-per-minute", "30", "--audio-per-hour", "2h", "--max-requests", "4", "--max-job-items", "5"]
    done = CliRunner().invoke(app, ["key", "new", *limits, "--max-file-bytes", "20G", "--expires", "2027-01-31T18:00:00Z"])
    assert done.exit_code == 0, done.output
    entry = yaml.safe_load(done.output[done.output.index("api_keys:") :])
    (key,) = config.load_settings(overrides=entry, environment={}).api_keys
    assert (key.requests_per_minute, key.audio_per_hour, key.max_requests) == (30, 7200.0, 4)
    assert (key.max_job_items, key.max_file_bytes, key.expires) == (5, 20_000_000_000, datetime(2027, 1, 31, 18, tzinfo=UTC))


@pytest.mark.parametrize(
    ("option", "value"),
    [("--audio-per-hour", "soon"), ("--max-file-bytes", "-2"), ("--expires", "tomorrow"), ("--max-requests", "0")],
)
def test_a_limit_that_the_config_would_refuse_makes_no_key(option: str, value: str) -> None:
    done = CliRunner().invoke(app, ["key", "new", option, value])
    assert done.exit_code == 2
    assert option in done.output
    assert "api_keys" not in done.output


def test_an_unknown_right_is_refused() -> None:
    done = CliRunner().invoke(app, ["key", "new", "--scope", "everything"])
    assert done.exit_code == 2
    assert "everything" in done.output


def test_a_command_without_a_valid_key_says_how_to_give_one() -> None:
    """`ps` is a route of Ollama's, whose errors are a text, and `keys` one of Eardrum's own."""
    with run_gateway(api_keys=["right", "schlüssel"]) as gateway:
        for command in (["ps"], ["keys"]):
            for key, says in (("", "This server requires an API key"), ("wrong", "The API key is not valid")):
                done = CliRunner().invoke(app, [*command, "--server", gateway.url], env={"EARDRUM_KEY": key})
                assert isinstance(done.exception, ServerAnswerError)
                assert done.exception.message.startswith(says)
                assert done.exception.message.endswith("--key KEY, or from EARDRUM_KEY.")
            for key in ("right", "right\r\n", "schlüssel"):
                done = CliRunner().invoke(app, [*command, "--server", gateway.url], env={"EARDRUM_KEY": key})
                assert done.exit_code == 0, done.output
        done = CliRunner().invoke(app, ["keys", "--server", gateway.url], env={"EARDRUM_KEY": "ri\nght"})
        assert isinstance(done.exception, ConfigError)
        assert "line break" in done.exception.message
