"""The files in `deploy/` agree with each other and with Eardrum. The validators are `make lint-deploy`."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from eardrum import __version__, config
from eardrum.cli.main import app
from eardrum.config.settings import Settings
from eardrum.errors import ConfigError

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
COMPOSE = DEPLOY / "compose"
KUBERNETES = DEPLOY / "kubernetes"
APP = DEPLOY / "home-assistant" / "eardrum"

COMPOSE_OWN = {"COMPOSE_PROFILES", "COMPOSE_FILE"}
"""Variables that Compose reads itself."""


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


class TestCompose:
    FILES = sorted(COMPOSE.glob("compose*.yaml"))

    def test_the_example_has_every_variable_and_no_other(self) -> None:
        used = {name for file in self.FILES for name in re.findall(r"\$\{(\w+)", file.read_text(encoding="utf-8"))}
        assert sorted(used | COMPOSE_OWN) == sorted(self.read_example())

    def test_defaults_are_the_same_in_both(self) -> None:
        example = self.read_example()
        for file in self.FILES:
            for name, default in re.findall(r"\$\{(\w+):-([^}]*)\}", file.read_text(encoding="utf-8")):
                assert (file.name, name, example[name]) == (file.name, name, default)

    def test_each_engine_has_a_port_of_its_own(self) -> None:
        ports = {name: value for name, value in self.read_example().items() if name.startswith("PORT_")}
        assert ports["PORT_WHISPER"] == "8105"
        assert len(set(ports.values())) == len(ports)

    @pytest.mark.parametrize("name", ["server", "onnx", "gguf", "whisper", "pytorch", "nemo"])
    def test_every_service_is_hardened(self, name: str) -> None:
        service = read_yaml(COMPOSE / "compose.yaml")["services"][name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert all(port.startswith("${BIND:-127.0.0.1}:") for port in service["ports"])

    def test_the_bot_has_options_that_exist_and_no_port(self) -> None:
        service = read_yaml(COMPOSE / "compose.yaml")["services"]["telegram"]
        assert (service["read_only"], service["cap_drop"], "ports" in service) == (True, ["ALL"], False)
        first, second, *arguments = [re.sub(r"\$\{\w+:-\}", "", word) for word in service["command"]]
        group: Any = get_command(app)
        assert group.commands[first].commands[second].make_context(second, arguments).params["chat_model"] == ""

    def test_variables_of_the_services_are_settings(self) -> None:
        """Variables with no value are as good as not there, so the environment of a fresh .env must load."""
        values = self.read_example()
        for service in read_yaml(COMPOSE / "compose.yaml")["services"].values():
            environment = {
                name: re.sub(r"\$\{(\w+):-[^}]*\}", lambda found: values[found[1]], value)
                for name, value in service["environment"].items()
                if name != "EARDRUM_CONFIG_DIR"
            }
            assert config.load_config(environment=environment).warnings == ()

    @staticmethod
    def read_example() -> dict[str, str]:
        lines = (COMPOSE / ".env.example").read_text(encoding="utf-8").splitlines()
        return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


CONFIGS = sorted([*(COMPOSE / "config").iterdir(), *KUBERNETES.rglob("eardrum.yaml"), *KUBERNETES.rglob("whisper-server.yaml")])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_configs_load_without_a_warning(path: Path) -> None:
    assert config.load_config(path, environment={"PHONE_KEY": "a"}).warnings == ()


class TestKubernetes:
    @pytest.fixture
    def pod(self) -> Any:
        return read_yaml(KUBERNETES / "base" / "deployment.yaml")["spec"]["template"]["spec"]

    def test_links_to_services_are_off(self, pod: Any) -> None:
        """The link to a Service called eardrum is EARDRUM_PORT=tcp://..., which no server would start with."""
        assert pod["enableServiceLinks"] is False
        with pytest.raises(ConfigError, match="port"):
            config.load_config(environment={"EARDRUM_PORT": "tcp://10.43.0.7:8100"})

    def test_the_grace_period_covers_a_shutdown(self, pod: Any) -> None:
        settings = config.load_settings(KUBERNETES / "base" / "eardrum.yaml", environment={})
        (container,) = pod["containers"]
        before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert pod["terminationGracePeriodSeconds"] >= before + settings.shutdown_timeout + 10

    def test_its_containers_are_restricted(self, pod: Any) -> None:
        assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == 10001
        for container in (*pod["initContainers"], *pod["containers"]):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }

    def test_the_policy_is_for_these_pods_alone(self) -> None:
        assert read_yaml(KUBERNETES / "base" / "network-policy.yaml")["spec"]["podSelector"]["matchLabels"]


class TestHomeAssistant:
    def test_the_options_are_settings(self, tmp_path: Path) -> None:
        """The Supervisor writes the options as JSON, which Eardrum reads as its config."""
        options = tmp_path / "options.json"
        options.write_text(json.dumps(read_yaml(APP / "config.yaml")["options"]))
        loaded = config.load_config(options, environment=self.read_environment())
        assert loaded.warnings == ()
        assert (loaded.settings.default_model, loaded.settings.pull_missing) == ("base", True)
        assert loaded.settings.hosts == ("*",)

    def test_every_option_is_a_setting_and_has_a_translation(self) -> None:
        app, texts = read_yaml(APP / "config.yaml"), read_yaml(APP / "translations" / "en.yaml")
        assert set(app["options"]) <= set(app["schema"]) <= set(Settings.model_fields)
        assert sorted(texts["configuration"]) == sorted(app["schema"])
        assert sorted(texts["network"]) == sorted(app["ports"])

    def test_the_app_has_the_version_of_the_package(self) -> None:
        assert read_yaml(APP / "config.yaml")["version"] == __version__

    @staticmethod
    def read_environment() -> dict[str, str]:
        """The variables that the Dockerfile sets, without the paths that the Supervisor mounts."""
        text = (APP / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
        (line,) = re.findall(r"^ENV (.*)$", text, re.MULTILINE)
        pairs = dict(part.split("=", 1) for part in re.findall(r"\S+='[^']*'|\S+", line))
        return {name: value.strip("'") for name, value in pairs.items() if name not in {"EARDRUM_CONFIG", "EARDRUM_CONFIG_DIR"}}


def test_images_set_the_same_environment() -> None:
    """The final stage of each image is written out, so that each file can be read by itself; what they share must not differ."""
    shared = {}
    for file in sorted((DEPLOY / "images").glob("*.Dockerfile")):
        final = file.read_text(encoding="utf-8").rsplit("\nFROM ", 1)[1]
        variables = set(re.findall(r"\b((?:HOME|HF_\w+|EARDRUM_\w+|ORT_\w+|PYTHON\w+)=\S+)", final))
        instructions = re.findall(
            r"^(?:USER|WORKDIR|VOLUME|EXPOSE|STOPSIGNAL|HEALTHCHECK|ENTRYPOINT|CMD) .*$", final, re.MULTILINE
        )
        shared[file.name] = (frozenset(variables), tuple(instructions))
    assert len(shared) == 4
    assert len(set(shared.values())) == 1, shared


class TestSystemd:
    UNITS = sorted((DEPLOY / "systemd").glob("*.service"))

    def test_the_units_are_those_that_the_page_shows(self) -> None:
        page = (ROOT / "docs" / "guides" / "systemd.md").read_text(encoding="utf-8")
        shown = re.findall(r"```ini\n(.*?)```", page, re.DOTALL)
        assert sorted(shown) == sorted(unit.read_text(encoding="utf-8") for unit in self.UNITS)

    @pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
    def test_the_command_exists_with_its_options(self, unit: Path) -> None:
        text = unit.read_text(encoding="utf-8")
        (line,) = re.findall(r"^ExecStart=/opt/eardrum/bin/eardrum (.*)$", text, re.MULTILINE)
        options = re.findall(r"^# BATCH_OPTIONS=([^;]*);", text, re.MULTILINE)
        command, *arguments = line.replace("$BATCH_OPTIONS", "".join(options)).split()
        group: Any = get_command(app)
        assert group.commands[command].make_context(command, arguments).params

    @pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd")
    @pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
    def test_systemd_finds_no_mistake(self, unit: Path, tmp_path: Path) -> None:
        """A program has to be where the unit says; /bin/true takes its place."""
        copy = tmp_path / unit.name.replace("@.", "@name.")
        copy.write_text(unit.read_text(encoding="utf-8").replace("/opt/eardrum/bin/eardrum", "/bin/true"))
        command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(copy)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")
