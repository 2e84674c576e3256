"""A check of the config's files without any effect, and a config that is read again and not applied."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from eardrum.config.loading import ConfigExamination, load_config
from eardrum.errors import ConfigError
from eardrum.server.reload import ConfigSource


def test_a_check_reports_what_a_reload_would_say(tmp_path: Path) -> None:
    file = tmp_path / "eardrum.yaml"
    file.write_text("default_ttl: 10m\n")
    source = ConfigSource(lambda ports: load_config(file, environment={}, ports=ports))
    source.read_first()

    def check() -> ConfigExamination:
        return asyncio.run(source.check())

    assert check() == ConfigExamination((file,))
    file.write_text("default_ttl: soon\nport: many\n")
    errors = check().errors
    assert len(errors) == 2
    assert "eardrum.yaml:1" in errors[0]
    assert "eardrum.yaml:2" in errors[1]
    file.write_text("no_such_setting: 1\n")
    found = check()
    assert not found.errors
    assert "no_such_setting" in found.warnings[0]
    file.unlink()
    assert check().errors


async def test_a_config_that_is_not_applied_takes_no_port_from_a_model(tmp_path: Path) -> None:
    file = tmp_path / "eardrum.yaml"

    def write_models(*names: str) -> None:
        file.write_text("".join(["models:\n", *(f"  {name}: {{cmd: 'serve --port ${{PORT}}'}}\n" for name in names)]))

    write_models("zulu")
    source = ConfigSource(lambda ports: load_config(file, environment={}, ports=ports))
    before = source.read_first().settings.models["zulu"]
    write_models("alpha")
    with pytest.raises(ConfigError, match="no such engine"):
        async with source.read(frozenset()):
            raise ConfigError("There is no such engine.")
    write_models("alpha", "zulu")
    async with source.read(frozenset()) as settings:
        assert settings.models["zulu"].proxy == before.proxy
        assert settings.models["alpha"].proxy != before.proxy
