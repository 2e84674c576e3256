"""Configs written to a file and read back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from eardrum import config
from eardrum.errors import ConfigError

Reader = Callable[..., config.LoadedConfig]
Refuser = Callable[..., str]


@pytest.fixture
def read_config(tmp_path: Path) -> Reader:
    def read_config(
        text: str, *assignments: str, ports: config.PortReservations | None = None, **environment: str
    ) -> config.LoadedConfig:
        file = tmp_path / "config.yaml"
        file.write_text(dedent(text))
        return config.load_config(file, assignments, environment, ports=ports)

    return read_config


@pytest.fixture
def get_refusal(read_config: Reader, tmp_path: Path) -> Refuser:
    """The message with which a config is refused, its folder left out."""

    def get_refusal(text: str, *assignments: str, **environment: str) -> str:
        with pytest.raises(ConfigError) as caught:
            read_config(text, *assignments, **environment)
        return caught.value.message.replace(f"{tmp_path}/", "")

    return get_refusal


def list_warnings(loaded: config.LoadedConfig) -> list[str]:
    """The warnings, without the folder of the file."""
    return [str(warning).replace(f"{loaded.files[0].parent}/", "") for warning in loaded.warnings]
