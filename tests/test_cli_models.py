"""`pull`, `list`, `show`, `rm` and `engines` as typed, with real weights from a fake hub."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

import pytest

from eardrum.engines import registry
from eardrum.gateway.models.store import ModelStore
from tests.commands import run_eardrum, start_eardrum
from tests.conftest import wait_for
from tests.fake_hub import FakeHub, FakeRepository, fake_hub
from tests.models import ggml
from tests.recordings import SPEECH_TEXT, encode_speech
from tests.test_cli import watch_terminal
from tests.weights import MOONSHINE, read_moonshine_files

pytestmark = pytest.mark.slow

NAME = "someone/moon-en"


@dataclass
class CommandShell:
    """Runs the command with an empty store and the fake hub."""

    hub: FakeHub
    store: Path

    @property
    def environment(self) -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("EARDRUM_", "STT_", "WHISPER_", "HF_"))}
        return clean | self.hub.environment | {"HF_HUB_CACHE": str(self.store)}

    def __call__(self, *arguments: str, says: str = "", code: int = 0, **more: str) -> str:
        done = run_eardrum(*arguments, env=self.environment | more, stdin=subprocess.DEVNULL)
        output = done.stdout + done.stderr
        assert done.returncode == code, output
        assert says in output
        assert "Traceback" not in output
        return output


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[CommandShell]:
    with fake_hub(someone__moon_en=FakeRepository(read_moonshine_files())) as hub:
        hub.repositories = {NAME: hub.repositories["someone/moon_en"]}
        yield CommandShell(hub, tmp_path / "store")


def test_a_pulled_model_transcribes(shell: CommandShell, tmp_path: Path) -> None:
    output = shell("pull", NAME)
    assert f"Downloading {NAME} for the engine moonshine." in output
    assert "100 % of 44 MB" in output
    assert f"eardrum transcribe FILE --model {NAME}" in output
    recording = tmp_path / "a.wav"
    recording.write_bytes(encode_speech("wav"))
    assert shell("transcribe", str(recording), "--model", NAME, HF_HUB_OFFLINE="1") == SPEECH_TEXT + "\n"
    listed = shell("list")
    assert f"{NAME} (default)" in listed
    shown = shell("show", NAME)
    for fact in ("moonshine (Moonshine tiny", "44 MB", "en", "token probabilities", "threads", "whisper-1", str(shell.store)):
        assert fact in shown
    shell("rm", NAME, says="add --yes", code=1)
    shell("rm", NAME, "--yes", says=f"Deleted {NAME}: 44 MB freed.")
    assert NAME not in shell("list")
    shell("rm", NAME, says="There is no model", code=1)


def test_ctrl_c_keeps_what_arrived_and_the_next_pull_continues(shell: CommandShell) -> None:
    gate = shell.hub.repositories[NAME].gate = Event()
    process = start_eardrum("pull", NAME, env=shell.environment, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: shell.hub.sending and shell.hub.served > 3_000_000)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"`eardrum pull {NAME}` continues where it stopped." in said
    assert "Traceback" not in said
    shell("list", says=f"{NAME} is incomplete: `eardrum pull {NAME}` continues the download, `eardrum rm {NAME}` deletes it.")
    shell("transcribe", __file__, "--model", NAME, says="There is no model", code=1)
    gate.set()
    shell("pull", NAME)
    assert shell.hub.ranges
    assert ModelStore(shell.store).find_files(NAME)
    assert "not finished" not in shell("list")


def test_a_terminal_sees_a_bar(shell: CommandShell) -> None:
    main, terminal = pty.openpty()
    with start_eardrum("pull", NAME, env=shell.environment, stdout=subprocess.PIPE, stderr=terminal) as process:
        os.close(terminal)
        shown: list[bytes] = []
        watching = Thread(target=watch_terminal, args=(main, shown))
        watching.start()
        assert process.wait(60) == 0
        watching.join(60)
    os.close(main)
    assert NAME.encode() in b"".join(shown)


def test_a_folder_is_copied_in(shell: CommandShell, tmp_path: Path) -> None:
    stick = tmp_path / "stick" / "moon-en"
    shutil.copytree(MOONSHINE, stick)
    shell("pull", str(stick), says="Copied moon-en to ")
    shutil.rmtree(stick.parent)
    shell("list", says="moon-en (default)")
    shell("pull", str(shell.store / "models--moon-en"), "--name", "my/copy", says="Copied my/copy to ")
    shell("show", "my/copy", says="moonshine")
    shell("rm", "moon-en", "--yes", says="44 MB freed")
    shell("pull", str(shell.store / "models--my--copy"), "--name", "my model", says="FILE --model 'my model'")
    assert shell.hub.requests == []


def test_folders_that_will_not_do(shell: CommandShell, tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "weights.xyz").write_bytes(b"x")
    shell("pull", str(odd), says="No engine recognises the files in", code=1)
    shell("pull", str(odd), "--engine", "moonshine", says="To run it with moonshine, add `models: {odd: {engine: moonshine}}`")
    shell("pull", str(odd), "--engine", "moonshine", says="There is a model odd already", code=1)
    shell("pull", str(odd), "--engine", "moonshine", "--name", "../x", says="cannot be called '../x'", code=1)
    shell("pull", "./nowhere", says="There is no folder ./nowhere.", code=1)
    shell("pull", NAME, "--name", "x", says="--name is for folders", code=1)


def test_what_cannot_be_pulled(shell: CommandShell) -> None:
    shell("pull", "larg-v9", says="No engine here knows a model 'larg-v9'", code=1)
    shell("pull", "nobody/nothing", says="The hub has no model nobody/nothing", code=1)
    shell("pull", "moonshine-tiny-en", says="it is part of the package", code=1)
    shell("pull", NAME, "--engine", "nobody", says="There is no engine 'nobody'", code=1)
    shell("pull", NAME, says="Unset it, or copy the folder and `eardrum pull FOLDER`", code=1, HF_HUB_OFFLINE="1")
    shell("pull", NAME, "--set", "model_dir=/nowhere", says="model_dir /nowhere is not a directory", code=1)
    shell.hub.repositories[NAME].files["tokenizer.bin"] = b""
    del shell.hub.repositories[NAME].files["encoder_model.ort"]
    shell("pull", NAME, says=f"No engine recognises the files of {NAME}", code=1)


def test_an_extra_that_is_missing_is_told_before_the_download(shell: CommandShell) -> None:
    lacking = next(card for card in registry.list_cards().values() if card.missing_packages and not card.apart)
    done = run_eardrum("pull", NAME, "--engine", lacking.name, stderr=subprocess.STDOUT, env=shell.environment)
    first, *rest = done.stdout.splitlines()
    assert f"run {sys.executable} -m pip install 'eardrum[{lacking.extra}]'" in first
    assert rest[0] == f"Downloading {NAME} for the engine {lacking.name}."


def test_pull_works_when_the_default_model_is_what_is_missing(shell: CommandShell) -> None:
    settings = ("--set", "default_model=mine", "--set", f"models.mine={{source: {NAME}, engine: moonshine, aliases: [me]}}")
    shell("show", "mine", *settings, says=f"It is not on this machine: `eardrum pull {NAME}` downloads all files of {NAME}")
    shell("list", *settings, says=f"mine is not on this machine: run `eardrum pull {NAME}`.")
    shell("pull", "me", *settings)
    shell("list", *settings, says="mine (default)")


def test_rm_deletes_only_what_is_the_stores(shell: CommandShell, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(MOONSHINE, own)
    shell("rm", "mine", "--set", f"models.mine.source={own}", says="remove it there, and delete its files at", code=1)
    shell("rm", "moonshine-tiny-en", says="is part of a Python package", code=1)
    for name in ("..", "../own", "", "own/..", str(own)):
        shell("rm", name, says="There is no model", code=1)
    assert len(list(own.iterdir())) == len(list(MOONSHINE.iterdir()))


def test_rm_leaves_folders_that_are_no_models(shell: CommandShell) -> None:
    thesis = shell.store / "Documents" / "thesis.txt"
    thesis.parent.mkdir(parents=True)
    thesis.write_text("precious")
    shell("rm", "Documents", "--yes", says="There is no model", code=1)
    assert thesis.read_text() == "precious"


def test_a_copy_that_was_cut_off_is_seen_and_can_be_removed(shell: CommandShell) -> None:
    half = shell.store / "models--big" / ".imported"
    half.mkdir(parents=True)
    (half / "model.bin").write_bytes(bytes(3_000_000))
    shell("list", says="big is incomplete: `eardrum pull FOLDER --name big` copies it again, `eardrum rm big` deletes it.")
    shell("rm", "big", "--yes", says="Deleted big: 3 MB freed.")
    assert not half.parent.exists()


def test_rm_asks_on_a_terminal(shell: CommandShell) -> None:
    shell("pull", NAME)
    for answer, stays in (("n", True), ("y", False)):
        main, terminal = pty.openpty()
        with start_eardrum(
            *("rm", NAME), env=shell.environment, stdin=terminal, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            os.write(main, f"{answer}\n".encode())
            out, _ = process.communicate(timeout=60)
        os.close(terminal)
        os.close(main)
        assert f"Delete {NAME} from {shell.store}?".encode() in out
        assert bool(ModelStore(shell.store).find_files(NAME)) is stays


def test_engines_tells_what_each_can_and_lacks(shell: CommandShell) -> None:
    output = shell("engines")
    for part in ("moonshine", "token probabilities", "encoder_model.ort", "installed  yes"):
        assert part in output


def test_commands_and_addresses_are_listed_and_shown(shell: CommandShell, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        """
        models:
          llm:
            cmd: |
              llama-server --port ${PORT}
                -m model.gguf
            env: [SECRET=sk-1]
            name: A language model
            aliases: [gpt]
            capabilities: {in: [text, image], out: [text], tools: true, context: 8192}
          far: {proxy: "http://far:1"}
        """
    )
    table = shell("list", "--config", str(config)).splitlines()
    assert [line.split() for line in table[1:3]] == [
        ["llm", "command", "-", "-", "config"],
        ["far", "address", "-", "-", "config"],
    ]
    shown = shell("show", "gpt", "--config", str(config))
    assert "command      llama-server --port 5800 -m model.gguf" in shown
    assert "address      http://localhost:5800" in shown
    assert "context      8192 tokens" in shown
    assert "SECRET" not in shown
    assert "address      http://far:1" in shell("show", "far", "--config", str(config))


def test_names_out_of_this_world(shell: CommandShell) -> None:
    for name in ("a\nb", "größe/ü", "x" * 10_000, "models--a--b", "--", "*"):
        output = shell("show", "--", name, says="No engine here knows a model", code=1)
        assert len(output) < 1000


def test_one_file_of_a_repository_with_many_models(shell: CommandShell, tmp_path: Path) -> None:
    """whisper.cpp's own, by the names of its script."""
    (file,) = ggml.build(tmp_path / "ggml").glob("*.bin")
    files = {f"ggml-{size}.bin": file.read_bytes() for size in ("base", "base.en", "tiny")}
    shell.hub.repositories["ggerganov/whisper.cpp"] = FakeRepository(files | {"README.md": b"x"})
    shell("pull", "ggml-base", says="for the engine ggml")
    assert shell.hub.served < 2 * len(files["ggml-base.bin"])
    id = "ggerganov/whisper.cpp/ggml-base.bin"
    shell("list", says=id)
    assert [path.name for path in shell.store.glob("models--*/snapshots/*/*")] == ["ggml-base.bin"]
    shell("pull", "ggerganov/whisper.cpp/ggml-tiny.bin")
    shell("show", "ggml-base.en", says="It is not on this machine")
    shell("pull", "ggerganov/whisper.cpp/ggml-huge.bin", says="has no file ggml-huge.bin", code=1)
    shell("pull", "ggml-bass", says="ggml-base", code=1)
    (tmp_path / "speech.wav").write_bytes(encode_speech("wav"))
    shell("transcribe", str(tmp_path / "speech.wav"), "--model", "ggml-base")
    shell("rm", "ggml-base", "--yes", says=f"Deleted {id}")
    assert [path.name for path in shell.store.glob("models--*/snapshots/*/*")] == ["ggml-tiny.bin"]
