"""What the documentation shows works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from eardrum import config

DOCS = Path(__file__).parent.parent / "docs"


def examples(page: str) -> list[str]:
    return re.findall(r"^```yaml\n(.*?)^```", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", ["guides/llama-swap.md", "reference/config.md", "guides/commands.md"])
def test_configs_that_are_shown_load_without_a_warning(page: str, tmp_path: Path) -> None:
    assert examples(page)
    for text in examples(page):
        file = tmp_path / "config.yaml"
        file.write_text(text)
        loaded = config.load_config(file, environment={})
        assert (loaded.settings.models != {}, [str(warning) for warning in loaded.warnings]) == (True, [])


def test_the_page_on_llama_swap_tells_the_truth(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(examples("guides/llama-swap.md")[0])
    models = config.load_settings(file, environment={}).models
    assert models["gemma"].cmd.split() == [
        *("llama-server", "--port", "9000", "--host", "127.0.0.1", "-m", "/srv/models/gemma-3-12b.gguf")
    ]
    assert "comments" not in models["qwen"].cmd
    assert models["qwen"].aliases == ("gpt-4o-mini", "qwen:no-think")
    assert models["whisper"].proxy == "http://localhost:9002"
