"""The folders of `examples/`: each has a README, configs that load, and settings that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from eardrum import config
from eardrum.cli.main import app
from eardrum.cli.serve import configure_models

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
FOLDERS = sorted(path for path in EXAMPLES.iterdir() if path.is_dir())
COMPOSED = sorted(EXAMPLES.glob("*/compose.yaml"))


def get_label(path: Path) -> str:
    return path.relative_to(EXAMPLES).parts[0]


@pytest.mark.parametrize("folder", FOLDERS, ids=get_label)
def test_each_has_a_page_that_the_index_knows(folder: Path) -> None:
    assert (folder / "README.md").read_text(encoding="utf-8").startswith("# ")
    assert f"[{folder.name}]({folder.name}/README.md)" in (EXAMPLES / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", [*EXAMPLES.glob("*/README.md"), EXAMPLES / "README.md"], ids=str)
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8"))
    assert [link for link in links if ":" not in link and not (path.parent / link).exists()] == []


def test_the_llama_swap_config_is_read_as_it_is() -> None:
    loaded = config.load_config(EXAMPLES / "llama-swap" / "config.yaml", environment={})
    assert loaded.warnings == ()
    speech = loaded.settings.models["whisper-large-v3-turbo"]
    assert "--inference-path /v1/audio/transcriptions" in speech.cmd
    assert speech.aliases == ("whisper-1",)


def test_the_config_for_one_port_loads_without_a_warning() -> None:
    loaded = config.load_config(EXAMPLES / "one-port" / "config.yaml", environment={})
    assert (sorted(loaded.settings.models), loaded.warnings) == (["qwen", "qwen-asr", "qwen-vl"], ())


@pytest.mark.parametrize("path", COMPOSED, ids=get_label)
def test_the_server_would_start(path: Path) -> None:
    """Its variables are settings, its arguments options; and it is hardened as in `deploy/compose`."""
    service = yaml.safe_load(path.read_text(encoding="utf-8"))["services"]["eardrum"]
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    environment = {name: fill_in(value) for name, value in service.get("environment", {}).items()}
    assert config.load_config(environment=environment).warnings == ()
    name, *arguments = [fill_in(argument) for argument in service.get("command", ["serve"])]
    group: Any = get_command(app)
    given = group.commands[name].make_context(name, arguments).params
    settings = config.load_settings(overrides=configure_models(given["models"], None, preload=given["preload"]), environment={})
    assert set(settings.models) == set(given["models"])


def fill_in(value: Any) -> str:
    """The text with the defaults of its variables."""
    return re.sub(r"\$\{\w+:[-?]([^}]*)\}", r"\1", str(value))


def test_the_workflow_of_n8n_sends_fields_that_exist() -> None:
    workflow = json.loads((EXAMPLES / "n8n" / "workflow.json").read_text(encoding="utf-8"))
    (request,) = [node for node in workflow["nodes"] if node["type"].endswith("httpRequest")]
    fields = {parameter["name"] for parameter in request["parameters"]["bodyParameters"]["parameters"]}
    assert request["parameters"]["url"] == "http://eardrum:8100/v1/audio/transcriptions"
    assert fields == {"file", "model", "response_format"}
    names = {node["name"] for node in workflow["nodes"]}
    linked = {target["node"] for outputs in workflow["connections"].values() for way in outputs["main"] for target in way}
    assert {*workflow["connections"], *linked} <= names
