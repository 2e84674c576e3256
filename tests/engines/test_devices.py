"""GPUs that cannot be used: one sentence with the cause and what to do, and `auto` goes on on the CPU.

CTranslate2's errors are its own: it is only made to count a GPU where there is none. So is what onnxruntime does when the library
that brings CUDA is not there. The driver that does not work is a library compiled for the purpose.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from eardrum.engines import cuda
from eardrum.engines.base import Device, EngineOptions
from eardrum.engines.shared.torch_tools import find_torch_device
from eardrum.errors import DeviceError
from tests.commands import run_eardrum
from tests.conftest import run_server, wait_for
from tests.models import faster_whisper
from tests.recordings import SPEECH_TEXT, encode_speech

pytestmark = [pytest.mark.slow, pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="this machine has a GPU")]

COUNTS = "import ctranslate2; ctranslate2.get_cuda_device_count = lambda: 1\n"
"""CTranslate2 sees a GPU, and fails when it asks it anything."""

ANSWERS = COUNTS + "ctranslate2.get_supported_compute_types = lambda device, index=0: {'float32', 'float16', 'int8'}\n"
"""It fails when it loads the weights."""

ABORTS = (
    ANSWERS
    + """
import os
real = ctranslate2.models.Whisper
def whisper(*arguments, device, **settings):
    if device == "cuda":
        print("Unable to load any of {libcudnn_ops.so.9.1.0, libcudnn_ops.so.9}", flush=True)
        os.abort()
    return real(*arguments, device=device, **settings)
ctranslate2.models.Whisper = whisper
"""
)
"""It ends the process, as it does where cuDNN is missing."""

NO_CUDNN = (
    ANSWERS
    + """
real = ctranslate2.models.Whisper
class Whisper:
    def __init__(self, *arguments, device, **settings):
        self._model, self._device = real(*arguments, device="cpu", **settings | {"compute_type": "int8"}), device
    def __getattr__(self, name):
        return getattr(self._model, name)
    device = property(lambda self: self._device)
    def encode(self, *arguments, **settings):
        if self._device == "cuda":
            raise RuntimeError("Library libcublas.so.12 is not found or cannot be loaded")
        return self._model.encode(*arguments, **settings)
ctranslate2.models.Whisper = Whisper
"""
)
"""It fails when it first computes, as it does where cuBLAS is missing."""

CUDA_BUILD = (
    "import onnxruntime; onnxruntime.get_available_providers = lambda: ['CUDAExecutionProvider', 'CPUExecutionProvider']\n"
    "from eardrum.engines import cuda; cuda.SIGNS = ('/',)\n"
)
"""onnxruntime is said to be a build with CUDA, on a machine with a GPU."""

LOAD = """
import json, sys
from pathlib import Path
from eardrum.errors import EardrumError
from eardrum.runner.__main__ import load_engine
engine, source, options = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
try:
    found = load_engine(engine, source, options)
    print(json.dumps(["", found.device, found.compute_type, found.reason]))
except EardrumError as error:
    print(json.dumps([error.message, "", "", ""]))
"""

Loaded = tuple[str, str, str, str]
Load = Callable[..., Loaded]


@contextmanager
def break_libraries(tmp_path: Path, code: str) -> Iterator[dict[str, str]]:
    """Variables with which every interpreter has these libraries."""
    (tmp_path / "sitecustomize.py").write_text(code)
    yield {"PYTHONPATH": str(tmp_path)}


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return faster_whisper.build(tmp_path_factory.mktemp("whisper"))


@pytest.fixture
def load(tmp_path: Path, whisper: Path, weights: Path) -> Load:
    """Load a model in an interpreter with broken libraries: what it raises, or where it is and why."""

    def load(code: str, engine: str, device: str, **environment: str) -> Loaded:
        source = whisper if engine == "faster_whisper" else weights
        with break_libraries(tmp_path, code) as variables:
            done = subprocess.run(
                [sys.executable, "-c", LOAD, engine, str(source), json.dumps({"device": device})],
                env=os.environ | variables | environment,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        assert done.returncode == 0, done.stderr
        message, where, numbers, reason = json.loads(done.stdout.splitlines()[-1])
        for text in (message, reason):
            assert "\n" not in text
            assert len(text) < 400
        return message, where, numbers, reason

    return load


def test_without_any_sign_of_a_gpu_nothing_is_said(load: Load) -> None:
    assert load("", "faster_whisper", "auto") == ("", "cpu", "int8_float32", "")
    assert load("", "moonshine", "auto") == ("", "cpu", "int8", "")


CASES = {
    "the driver": (
        COUNTS,
        "faster_whisper",
        r"CTranslate2 cannot use an NVIDIA GPU here \(CUDA failed with error CUDA driver version is insufficient for CUDA "
        r"runtime version\): install or update the NVIDIA driver",
    ),
    "the driver, seen later": (
        ANSWERS,
        "faster_whisper",
        r"CTranslate2 cannot use an NVIDIA GPU here \(CUDA failed with error CUDA driver version is insufficient .*\): install",
    ),
    "a library that is missing": (
        NO_CUDNN,
        "faster_whisper",
        r"cannot use an NVIDIA GPU here \(Library libcublas.so.12 is not found or cannot be loaded\): install the CUDA libraries",
    ),
    "CUDA of onnxruntime": (
        CUDA_BUILD,
        "moonshine",
        r"onnxruntime cannot use an NVIDIA GPU here \(.*libonnxruntime_providers_\w+.so: cannot open shared object file",
    ),
}


@pytest.mark.parametrize(("code", "engine", "says"), CASES.values(), ids=CASES.keys())
def test_auto_goes_on_on_the_cpu_and_says_why(load: Load, code: str, engine: str, says: str) -> None:
    message, device, numbers, reason = load(code, engine, "auto")
    assert (message, device) == ("", "cpu")
    assert numbers in ("int8", "int8_float32")
    assert re.search(says, reason), reason


@pytest.mark.parametrize(("code", "engine", "says"), CASES.values(), ids=CASES.keys())
def test_cuda_is_refused_in_one_sentence(load: Load, code: str, engine: str, says: str) -> None:
    message, *_ = load(code, engine, "cuda")
    assert message.startswith("device is cuda, but ")
    assert re.search(says, message), message
    assert message.endswith(", or set device to cpu.")


def test_a_full_gpu_is_no_reason_for_the_cpu(load: Load) -> None:
    full = NO_CUDNN.replace("Library libcublas.so.12 is not found or cannot be loaded", "CUDA failed with error out of memory")
    message, *_ = load(full, "faster_whisper", "auto")
    assert "out of memory): free some of its memory, or choose a smaller model" in message


@pytest.fixture
def driver(tmp_path: Path) -> dict[str, str]:
    """A driver that is there and does not work, as after an update of the kernel."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        pytest.skip("nothing here compiles C")
    folder = tmp_path / "driver"
    folder.mkdir()
    (folder / "driver.c").write_text(
        "int cuInit(unsigned f) { return 999; }\nint cuDriverGetVersion(int *v) { *v = 12040; return 0; }\n"
    )
    command = [compiler, "-shared", "-fPIC", "-o", str(folder / cuda.DRIVER), str(folder / "driver.c")]
    subprocess.run(command, check=True, timeout=60)
    return {"LD_LIBRARY_PATH": str(folder)}


def test_a_driver_that_does_not_work(load: Load, driver: dict[str, str]) -> None:
    says = r"CTranslate2 cannot use an NVIDIA GPU here \(CUDA failed with error unknown error\): check with `nvidia-smi`"
    message, device, _, reason = load("", "faster_whisper", "auto", **driver)
    assert (message, device) == ("", "cpu")
    assert re.search(says, reason), reason
    message, *_ = load("", "faster_whisper", "cuda", **driver)
    assert re.search(says, message), message
    hidden = load("", "faster_whisper", "auto", **driver, CUDA_VISIBLE_DEVICES="")
    assert hidden == ("", "cpu", "int8_float32", ""), "who hides the GPUs knows why there is none"


def run_check(*arguments: str, **environment: str) -> dict[str, Any]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("EARDRUM_")}
    done = run_eardrum("check", "--json", *arguments, env=clean | environment)
    report: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if report["ok"] else 1)
    return report


def test_check_finds_it(tmp_path: Path, whisper: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"models:\n  w:\n    source: {whisper}\n    options:\n      device: cuda\n")
    with break_libraries(tmp_path, COUNTS) as variables:
        (error,) = run_check(str(file), **variables)["errors"]
    assert (error["line"], error["setting"]) == (5, "models.w.options.device")
    assert error["message"].startswith("w: device is cuda, but CTranslate2 cannot use an NVIDIA GPU here (CUDA failed with error")
    (error,) = run_check("--set", "device=cuda")["errors"]
    assert error["message"].startswith("moonshine-tiny-en: device is cuda, but onnxruntime cannot use an NVIDIA GPU here")
    assert run_check(str(file), "--set", "models.w.options.device=cpu")["ok"]


def test_check_warns_of_auto(tmp_path: Path, whisper: Path, driver: dict[str, str]) -> None:
    report = run_check("--set", f"models.w.source={whisper}", **driver)
    assert report["ok"]
    (warning,) = report["warnings"]
    assert warning["message"].startswith(
        "w would run on the CPU: CTranslate2 cannot use an NVIDIA GPU here (CUDA failed with error"
    )


def test_a_server_says_where_its_models_are(tmp_path: Path, whisper: Path) -> None:
    """The library of one ends the process on the GPU, that of another takes the CPU without a word, and one is to be on CUDA."""
    with break_libraries(tmp_path, ABORTS + CUDA_BUILD) as variables:
        settings = ["--set", f"models.w.source={whisper}", "--set", f"models.c={{source: {whisper}, options: {{device: cuda}}}}"]
        with run_server(*settings, "--set", "default_model=moonshine-tiny-en", **variables) as server:
            assert server.post_audio(encode_speech("wav")).json()["text"] == SPEECH_TEXT
            assert server.post_audio(encode_speech("wav"), model="w").status_code == 200
            refused = server.post_audio(encode_speech("wav"), model="c")
            assert refused.status_code == 500
            message = refused.json()["error"]["message"]
            assert message.startswith("device is cuda, but the process of c was ended by SIGABRT")
            assert message.endswith(": install the CUDA libraries with `pip install 'eardrum[cuda]'`, or set device to cpu.")
            listed = {model["id"]: model for model in requests.get(f"{server.address}/api/ps", timeout=20).json()["models"]}
            health = {model["id"]: model for model in requests.get(f"{server.address}/health", timeout=20).json()["models"]}
            for entries in (listed, health):
                for id, numbers, reason in (
                    (
                        "w",
                        "int8_float32",
                        "was ended by SIGABRT (the program aborted itself) when it tried the GPU (Unable to load any of",
                    ),
                    ("moonshine-tiny-en", "int8", "onnxruntime cannot use an NVIDIA GPU here ("),
                ):
                    assert (entries[id]["device"], entries[id]["compute_type"]) == ("cpu", numbers)
                    assert reason in entries[id]["device_reason"]
            for line in (
                r"moonshine-tiny-en ready after [\d.]+ s: moonshine, on cpu, int8, batch \d+, pid \d+",
                r"WARNING +w runs on the CPU: The process of w was ended by SIGABRT",
            ):
                wait_for(lambda line=line: re.search(line, server.log))
            shown = run_eardrum("ps", "--server", server.address, check=True).stdout
            assert "cpu, int8" in shown
            assert "w runs on the CPU: The process of w was ended by SIGABRT" in shown
            assert "^^^" not in server.log


class FakeTorch:
    """What is asked of PyTorch about devices, with its own words for a machine whose driver is missing or old."""

    __version__ = "2.9.0"

    class version:  # noqa: N801 -- PyTorch's names
        cuda: str | None = "12.8"

    class cuda:  # noqa: N801
        why = ""

        @staticmethod
        def is_available() -> bool:
            return False

        @classmethod
        def init(cls) -> None:
            raise RuntimeError(cls.why)


@pytest.mark.parametrize(
    ("why", "says"),
    [
        (
            "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver from "
            "http://www.nvidia.com/Download/index.aspx",
            "PyTorch cannot use an NVIDIA GPU here (Found no NVIDIA driver on your system): make the GPU visible here",
        ),
        (
            "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by downloading ...",
            "PyTorch cannot use an NVIDIA GPU here (The NVIDIA driver on your system is too old (found version 11040)): install",
        ),
    ],
)
def test_pytorch(monkeypatch: pytest.MonkeyPatch, why: str, says: str) -> None:
    monkeypatch.setattr(FakeTorch.cuda, "why", why)
    with pytest.raises(DeviceError, match=re.escape(says)):
        find_torch_device(EngineOptions(device="cuda"), FakeTorch)
    monkeypatch.setattr(cuda, "is_gpu_present", lambda: False)
    assert find_torch_device(EngineOptions(), FakeTorch) == Device("cpu")
    monkeypatch.setattr(cuda, "is_gpu_present", lambda: True)
    found = find_torch_device(EngineOptions(), FakeTorch)
    assert found.name == "cpu"
    assert found.reason.startswith(says)


def test_pytorch_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeTorch.version, "cuda", None)
    with pytest.raises(DeviceError, match=r"PyTorch 2.9.0 cannot .* \(it is built without CUDA\): install PyTorch for your CUDA"):
        find_torch_device(EngineOptions(device="cuda"), FakeTorch)
