"""`eardrum check`: a look at a config without running it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from eardrum.cli import check
from eardrum.cli.check import hide_secrets
from eardrum.cli.main import app

pytestmark = pytest.mark.usefixtures("forked_checks")

CONFIG = f"""
    startPort: 9000
    macros:
      serve: {sys.executable} -m server --port ${{PORT}}
    models:
      qwen:
        cmd: |
          # a comment
          ${{serve}} \\
            --api-key ${{env.KEY}} -m "a b.gguf"
        cmdStop: kill ${{PID}}
        env: [TOKEN=hush, CUDA_VISIBLE_DEVICES=0]
        aliases: [chat]
        ttl: 300
      gemma:
        cmd: ${{serve}}
      cloud:
        proxy: https://me:hush@example.com/v1
      moonshine-tiny-en:
    groups:
      llms: {{members: [qwen, gemma], exclusive: false}}
    apiKeys: [hush]
"""


def run_check(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(app, ["check", *arguments], env=environment)


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(dedent(CONFIG))
    return str(path)


def test_engines_that_do_not_answer_are_an_error_in_the_report(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "subprocess", subprocess)
    monkeypatch.setattr(check, "OPTIONS_S", 0.01)
    done = run_check(config, KEY="hush")
    assert done.exit_code == 1, done.output
    assert "models.moonshine-tiny-en: The options cannot be checked: the process did not answer within 0.01 s." in done.output


def test_for_people(config: str) -> None:
    done = run_check(config, KEY="hush")
    assert done.exit_code == 0, done.output
    assert f"{sys.executable} -m server --port 9001 --api-key '***' -m 'a b.gguf'" in " ".join(done.output.split())
    assert "qwen  (command, port 9001, unloaded after 300 s)" in done.output
    assert "stopped by kill '${PID}'" in done.output
    assert "environment: TOKEN, CUDA_VISIBLE_DEVICES" in done.output
    assert "also called: chat" in done.output
    assert "at https://***@example.com/v1" in done.output
    assert "moonshine-tiny-en  (moonshine)" in done.output
    assert done.output.endswith("config.yaml: 4 models, 0 errors, 0 warnings.\n")
    assert "hush" not in done.output


def test_for_machines(config: str) -> None:
    done = run_check(config, "--json", KEY="hush")
    assert done.exit_code == 0
    report = json.loads(done.output)
    assert (report["ok"], report["files"], report["errors"]) == (True, [config], [])
    qwen = next(model for model in report["models"] if model["id"] == "qwen")
    assert qwen["command"][-4:] == ["--api-key", "***", "-m", "a b.gguf"]
    assert (qwen["port"], qwen["proxy"], qwen["environment"]) == (
        9001,
        "http://localhost:9001",
        ["TOKEN", "CUDA_VISIBLE_DEVICES"],
    )
    assert qwen["beside"] == ["cloud", "moonshine-tiny-en"]
    assert "hush" not in done.output


def list_findings(tmp_path: Path, text: str, *arguments: str) -> tuple[dict[str, Any], int]:
    path = tmp_path / "config.yaml"
    path.write_text(dedent(text))
    done = run_check(str(path), "--json", *arguments)
    return json.loads(done.output), done.exit_code


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("models:\n  a: {cmd: '${x} ${PORT}'}", 2, "There is no macro ${x}"),
        ("models:\n  a: [", 2, "not valid YAML"),
        ("host: h\nmodel_dir: /nowhere", 2, "model_dir /nowhere is not a directory"),
        ("default_model: nobody-knows", 1, "default_model"),
        ("models:\n  b:\n  a: {source: /nowhere/at/all}", 2, "No engine here knows a model 'b'"),
        (
            "models:\n  moonshine-tiny-en:\n  a:\n    source: /nowhere/at/all",
            3,
            "models.a.source: /nowhere/at/all does not exist",
        ),
        ("models:\n  moonshine-tiny-en:\n    fallback: [nobody]", 3, "models.moonshine-tiny-en.fallback"),
        ("memory:\n  cpu: lots", 2, "memory.cpu: 'lots' is not a size"),
        ("memory: {cpu: 1G}\nmodels:\n  moonshine-tiny-en: {memory: lots}", 3, "models.moonshine-tiny-en.memory: 'lots'"),
        ("models:\n  a:\n    engine: telepathy", 2, "There is no engine 'telepathy'"),
        ("models:\n  base:\n    options:\n      treads: 2", 4, "has no option treads"),
        ("models:\n  base:\n    options:\n      treads: 2", 4, "Did you mean threads?"),
        ("models:\n  base:\n    options:\n      threads: many", 4, "Option threads of faster_whisper: Input should be"),
        ("models:\n  base:\n    options: {device: gpu}", 3, "Option device of faster_whisper: Input should be 'auto'"),
    ],
)
def test_what_keeps_the_server_from_starting(tmp_path: Path, text: str, line: int, says: str) -> None:
    report, code = list_findings(tmp_path, text)
    assert (code, report["ok"]) == (1, False)
    first = report["errors"][0]
    assert says in first["message"]
    assert (first["line"], bool(first["file"])) == (line, bool(line))


def test_all_contradictions_are_named_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = """\
apiKeys: ["a b"]
models:
  a: {cmd: 's ${PORT}', aliases: [x]}
  b: {cmd: 's ${PORT}', aliases: [x]}
  c: {proxy: nowhere}
profiles:
  p: {pins: {z: nobody}}
selectors:
  s: {strategy: pin, targets: [nothing]}
groups:
  g: {members: [a, noone, a]}
"""
    report, code = list_findings(tmp_path, text)
    assert code == 1
    assert [error["line"] for error in report["errors"]] == [1, 4, 5, 7, 9, 11, 11]
    for word, error in zip(("apiKeys", "'x'", "c.proxy", "nobody", "nothing", "noone", "twice"), report["errors"], strict=True):
        assert word in error["message"]


def test_all_models_that_cannot_be_are_named(tmp_path: Path) -> None:
    report, _ = list_findings(tmp_path, "models: {a: {source: /nowhere/a}, b: {source: /nowhere/b}}")
    assert [error["setting"] for error in report["errors"]] == ["models.a", "models.b"]


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("foo: 1", 1, "Unknown setting foo"),
        ("models:\n  a:\n    cmd: no-such-program ${PORT}", 3, "The program no-such-program in the `cmd` of a"),
        (
            "models:\n  a: {cmd: 'true ${PORT}', cmdStop: /no/such/program}",
            2,
            "The program /no/such/program in the `cmdStop` of a",
        ),
        ("hooks:\n  on_startup:\n    preload:\n    - moonshine-tiny-en\n    - nobody", 5, "nobody cannot be preloaded"),
        ("models:\n  base:", 2, "eardrum pull base"),
        ("models:\n  moonshine-tiny-en: {batch_size: 4000}", 2, "batch_size is 4000"),
    ],
)
def test_what_is_odd(tmp_path: Path, text: str, line: int, says: str) -> None:
    report, code = list_findings(tmp_path, text)
    assert code == 0, report
    assert any(says in warning["message"] and warning["line"] == line for warning in report["warnings"]), report["warnings"]


def test_several_files_and_flags(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("models: {a: {proxy: 'http://x'}}")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "two.yaml").write_text("models: {b: {proxy: 'http://x'}}")
    done = run_check(str(tmp_path / "one.yaml"), "--config-dir", str(tmp_path / "more"), "--set", "models.a.ttl=5", "--json")
    report = json.loads(done.output)
    assert [(model["id"], model["ttl"]) for model in report["models"]] == [("a", 5), ("b", 0)]
    assert len(report["files"]) == 2


def test_nothing_to_check() -> None:
    done = run_check()
    assert (done.exit_code, done.output) == (0, "0 models, 0 errors, 0 warnings.\n")


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--api-key", "x", "-m", "y"], ["--api-key", "***", "-m", "y"]),
        (["--api-key=x", "HF_TOKEN=x", "-e", "PASSWORD=x"], ["--api-key=***", "HF_TOKEN=***", "-e", "PASSWORD=***"]),
        (["--max-tokens", "5", "--tokenizer", "y"], ["--max-tokens", "5", "--tokenizer", "y"]),
        (["--api-key-file", "y", "--ssl-key-file=y"], ["--api-key-file", "y", "--ssl-key-file=y"]),
        (["--auth", "--port", "5"], ["--auth", "--port", "5"]),
        (["-H", "Authorization: Bearer x y"], ["-H", "Authorization: Bearer *** y"]),
    ],
)
def test_secrets_are_hidden(arguments: list[str], shown: list[str]) -> None:
    assert hide_secrets(arguments) == shown


@pytest.mark.parametrize(
    ("rules", "beside"),
    [
        ("", {"a": ["d"], "b": ["d"], "d": ["a", "b"]}),
        ("groups: {g: {members: [a, b], swap: false}}", {"a": ["b", "d"], "b": ["a", "d"], "d": ["a", "b"]}),
        ("matrix: {sets: {s: a & d}}", {"a": ["d"], "b": [], "d": ["a"]}),
        ("memory: {cpu: 10G}", {"a": ["b", "d"], "b": ["a", "d"], "d": ["a", "b"]}),
        ("memory: {cpu: 5G}", {"a": ["d"], "b": ["d"], "d": ["a", "b"]}),
    ],
)
def test_who_may_be_loaded_beside_whom(tmp_path: Path, rules: str, beside: dict[str, list[str]]) -> None:
    models = "models: {a: {cmd: 'true ${PORT}', memory: 3G}, b: {cmd: 'true ${PORT}', memory: 3G}, d: {proxy: 'http://d'}}\n"
    report, _ = list_findings(tmp_path, models + rules)
    assert {model["id"]: model["beside"] for model in report["models"]} == beside


def test_everything_is_found_in_one_run(tmp_path: Path) -> None:
    """From the words of the files to the options of engines: what is wrong early hides nothing that is wrong late."""
    text = f"""\
port: high
globalTtl: 5
model_dir: /nowhere
spool_dir: /nowhere/either
tls_key: /no/key.pem
memory: {{cpu: lots, cuda: 4G}}
models:
  a: {{cmd: '{sys.executable} ${{PORT}} ${{nothing}}'}}
  b: {{source: /nowhere/b}}
  c: {{cmd: 'no-such-program ${{PORT}}', memory: much, fallback: [who]}}
  moonshine-tiny-en:
    options: {{treads: 2, device: gpu}}
    fallback: [b, nobody]
  base:
groups:
  g: {{members: [a, noone]}}
hooks: {{on_startup: {{preload: [nothing-at-all]}}}}
"""
    report, code = list_findings(tmp_path, text, "--set", "limits.fieldz=1")
    assert code == 1
    for line, says in (
        (1, "The setting port is wrong"),
        (3, "model_dir /nowhere is not a directory"),
        (4, "spool_dir /nowhere/either is not a folder"),
        (5, "tls_key is set but tls_certificate is not"),
        (6, "memory.cpu: 'lots' is not a size"),
        (8, "There is no macro ${nothing}"),
        (9, "models.b.source: /nowhere/b does not exist"),
        (10, "models.c.memory: 'much' is not a size"),
        (10, "models.c.fallback: There is no model 'who'"),
        (12, "moonshine has no option treads"),
        (12, "Option device of moonshine"),
        (13, "models.moonshine-tiny-en.fallback: There is no model 'nobody'"),
        (16, "there is no model 'noone'"),
        (0, "Unknown setting limits.fieldz"),
    ):
        assert any(says in error["message"] and error["line"] == line for error in report["errors"]), (says, report["errors"])
    assert len(report["errors"]) == 14, report["errors"]
    for line, says in (
        (2, "Unknown setting globalTtl"),
        (10, "The program no-such-program"),
        (14, "eardrum pull base"),
        (17, "nothing-at-all cannot be preloaded"),
    ):
        assert any(says in warning["message"] and warning["line"] == line for warning in report["warnings"]), report["warnings"]


def test_a_default_model_that_is_wrong_is_told_once(tmp_path: Path) -> None:
    report, _ = list_findings(tmp_path, "default_model: a\nmodels: {a: {source: /nowhere}}")
    assert [error["setting"] for error in report["errors"]] == ["models.a"]


def test_where_flags_and_variables_are_wrong(tmp_path: Path) -> None:
    done = run_check("--set", "port=high", EARDRUM_GLOBALTTL="soon", EARDRUM_PROT="1")
    assert done.exit_code == 1
    assert "    --set port: The setting port is wrong: it must be a whole number (it is 'high').\n" in done.output
    assert "    EARDRUM_GLOBALTTL: The setting globalTTL is wrong: it must be a number or a time such as 10m" in done.output
    assert "    Unknown environment variable EARDRUM_PROT. Did you mean EARDRUM_PORT?\n" in done.output


def test_pools_are_shown(tmp_path: Path) -> None:
    text = """\
memory: {cuda: 10G, cpu: 2G}
models:
  a: {cmd: 'true ${PORT}', memory: 6G}
  b: {cmd: 'true ${PORT}', memory: 'cuda 5G, cpu 1.5G'}
  d: {proxy: 'http://d'}
"""
    report, code = list_findings(tmp_path, text)
    assert code == 0, report
    assert report["pools"] == [
        {"name": "cuda", "bytes": 10_000_000_000, "models": {"a": 6_000_000_000, "b": 5_000_000_000}},
        {"name": "cpu", "bytes": 2_000_000_000, "models": {"b": 1_500_000_000}},
    ]
    shown = run_check(str(tmp_path / "config.yaml")).output
    assert "Pools of memory\n    cuda has 10.0 GB; models take a 6.0 GB, b 5.0 GB\n" in shown


def test_strictly_warnings_are_errors(tmp_path: Path) -> None:
    _, code = list_findings(tmp_path, "globalTtl: 1")
    assert code == 0
    report, code = list_findings(tmp_path, "globalTtl: 1", "--strict")
    assert (code, report["ok"], len(report["warnings"])) == (1, False, 1)
    report, code = list_findings(tmp_path, "globalTTL: 1", "--strict")
    assert (code, report["ok"]) == (0, True)
