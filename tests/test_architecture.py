"""The gateway stays light: what its process has imported once it could serve."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"numpy", "onnxruntime", "av", "torch", "ctranslate2", "faster_whisper", "moonshine_voice"}
HUB = {"huggingface_hub", "httpx2", "filelock", "hf_xet"}


def list_modules_after(statement: str) -> set[str]:
    command = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    "statement",
    [
        "import eardrum.cli.main, eardrum.server.lifecycle, eardrum.cli.transcribers",
        "from eardrum import config\n"
        "from eardrum.server import app\n"
        "from eardrum.gateway.service import Service\n"
        "app.create_app(Service(config.Settings()))",
    ],
    ids=["imported", "created"],
)
def test_the_gateway_imports_nothing_heavy(statement: str) -> None:
    loaded = list_modules_after(statement)
    assert "eardrum.gateway.service" in loaded
    assert not loaded & (HEAVY | HUB)
    assert not loaded & {"sqlite3", "asyncpg", "eardrum.jobs.store", "eardrum.jobs.worker"}, "jobs cost nothing before the first"
    assert "eardrum.gateway.upstreams.replicas" not in loaded, "replicas cost nothing before the first"
    assert "aiohttp" not in loaded, "the server has asked nobody yet"
    assert "yaml" not in loaded, "there is no config"
    other_side = ("eardrum.runner", "eardrum.hub", "eardrum.engines.moonshine", "eardrum.engines.base")
    assert not [name for name in loaded if f"{name}.".startswith(tuple(f"{side}." for side in other_side))]


def test_a_command_does_not_wait_for_what_another_one_needs() -> None:
    loaded = list_modules_after("import eardrum.cli.main")
    assert not loaded & {"aiohttp", "starlette", "uvicorn", "eardrum.gateway.service"}


def test_a_runner_knows_no_wire() -> None:
    loaded = list_modules_after("import eardrum.runner.__main__, eardrum.engines.moonshine")
    assert "numpy" in loaded
    assert not [name for name in loaded if name.startswith(("eardrum.api", "eardrum.gateway", "eardrum.config", "torch"))]


def test_what_fetches_knows_neither_models_nor_clients() -> None:
    loaded = list_modules_after("import eardrum.hub")
    assert "huggingface_hub" in loaded
    ours = {name for name in loaded if name.startswith("eardrum.")}
    assert ours == {"eardrum.errors", "eardrum.hub", "eardrum.process_messages"}
    assert not loaded & HEAVY


def test_the_package_itself_imports_nothing() -> None:
    assert {name for name in list_modules_after("import eardrum") if name.startswith("eardrum")} == {"eardrum"}


def test_every_connector_is_given_its_tls_context() -> None:
    """A connector without one would refuse every certificate: see `eardrum.aiohttp_import`."""
    modules = [path for path in Path("src").rglob("*.py") if path.name != "aiohttp_import.py"]
    given = {"TCPConnector": "ssl", "ClientSession": "connector"}
    naming = [text for path in modules if any(name in (text := path.read_text(encoding="utf-8")) for name in given)]
    calls = [node for text in naming for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    found = [(node, given[node.func.attr]) for node in calls if isinstance(node.func, ast.Attribute) and node.func.attr in given]
    assert len(found) >= 7
    assert not [ast.unparse(node) for node, name in found if name not in {keyword.arg for keyword in node.keywords}]
    direct = "\nimport aiohttp"
    assert not [path for path in modules if direct in path.read_text() or "\nfrom aiohttp" in path.read_text()]
