"""A check of the config's files without any effect."""

from __future__ import annotations

import asyncio
from pathlib import Path

from eardrum.config.loading import ConfigExamination, load_config
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
