"""The options of `eardrum serve` for models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eardrum import config
from eardrum.cli.serve import configure_models


@pytest.mark.parametrize(
    ("models", "default", "preload", "expected"),
    [
        ([], None, False, {}),
        ([], None, True, {"hooks": {"on_startup": {"preload": ["whisper-1"]}}}),
        (
            ["tiny", "large-v3"],
            None,
            False,
            {
                "models": {"tiny": {}, "large-v3": {}},
                "default_model": "tiny",
                "hooks": {"on_startup": {"pull": ["tiny", "large-v3"]}},
            },
        ),
        (
            ["tiny", "small"],
            "small",
            True,
            {
                "models": {"tiny": {}, "small": {}},
                "default_model": "small",
                "hooks": {"on_startup": {"pull": ["tiny", "small"], "preload": ["tiny", "small"]}},
            },
        ),
    ],
)
def test_models_become_settings(models: list[str], default: str | None, preload: bool, expected: dict[str, Any]) -> None:
    assert configure_models(models, default, preload=preload) == expected
    config.load_settings(overrides=expected, environment={})


def test_a_folder_is_called_by_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "my-whisper"
    folder.mkdir()
    found = configure_models([f"{folder}/"], None, preload=False)
    assert found["models"] == {"my-whisper": {"source": f"{folder}/"}}
    assert found["default_model"] == "my-whisper"


def test_options_win_over_the_config_and_keep_the_rest_of_it(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("models: {tiny: {ttl: 5, aliases: [quick]}, small: {}}\ndefault_model: small\n")
    settings = config.load_settings(file, overrides=configure_models(["tiny"], None, preload=True), environment={})
    assert (settings.models["tiny"].ttl, settings.models["tiny"].aliases) == (5, ("quick",))
    assert set(settings.models) == {"tiny", "small"}
    assert settings.default_model == "tiny"
    assert settings.hooks.on_startup.pull == settings.hooks.on_startup.preload == ("tiny",)
