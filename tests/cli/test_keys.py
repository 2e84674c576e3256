"""Making API keys."""

from __future__ import annotations

import yaml
from typer.testing import CliRunner

from eardrum import config
from eardrum.cli.main import app
from eardrum.config.api_keys import KeyScope, hash_key
from eardrum.gateway.key_usage import KeyRegistry


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


def test_an_unknown_right_is_refused() -> None:
    done = CliRunner().invoke(app, ["key", "new", "--scope", "everything"])
    assert done.exit_code == 2
    assert "everything" in done.output
