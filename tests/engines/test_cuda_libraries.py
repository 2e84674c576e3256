"""CUDA libraries of pip: found without LD_LIBRARY_PATH. Here they are small libraries with NVIDIA's names and folders."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import onnxruntime
import pytest
from packaging.requirements import Requirement

from eardrum.engines import cuda
from eardrum.engines.shared.onnx import find_onnx_device
from tests.cuda_wheels import build_cublas

USE = "from ctypes import CDLL; print(CDLL('libcublas.so.12').cublasAnswer())"


def run_python(code: str, *folders: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}
    paths = os.pathsep.join(map(str, folders))
    return subprocess.run(
        [sys.executable, "-c", code],
        env=clean | {"PYTHONPATH": paths} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_library_of_a_wheel_is_found_by_its_name(tmp_path: Path) -> None:
    build_cublas(tmp_path, 42)
    assert "cannot open shared object file" in run_python(USE, tmp_path).stderr, "the loader alone does not find it"
    done = run_python(f"from eardrum.engines import cuda; cuda.preload_libraries(cuda.CUBLAS_12); {USE}", tmp_path)
    assert (done.stdout, done.returncode) == ("42\n", 0), done.stderr


def test_a_folder_that_the_user_named_comes_first(tmp_path: Path) -> None:
    build_cublas(tmp_path / "pip", 42)
    own = build_cublas(tmp_path / "own", 7)
    code = f"from eardrum.engines import cuda; cuda.preload_libraries(cuda.CUBLAS_12); {USE}"
    assert run_python(code, tmp_path / "pip", LD_LIBRARY_PATH=str(own)).stdout == "7\n"


def test_libraries_that_are_missing_or_broken_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "nvidia" / "cublas" / "lib"
    folder.mkdir(parents=True)
    (folder / "libcublas.so.12").write_bytes(b"no library")
    done = run_python("from eardrum.engines import cuda; cuda.preload_libraries(cuda.CUBLAS_12)", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_ctranslate2_on_a_gpu_has_its_libraries(tmp_path: Path) -> None:
    """CTranslate2 is only made to count a GPU where there is none."""
    build_cublas(tmp_path, 42)
    code = (
        "import ctranslate2; ctranslate2.get_cuda_device_count = lambda: 1\n"
        "ctranslate2.get_supported_compute_types = lambda device, index=0: {'float32'}\n"
        "from eardrum.engines.shared.ctranslate2_whisper import find_ctranslate2_device\n"
        "assert find_ctranslate2_device('auto', [0]).name == 'cuda'\n" + USE
    )
    done = run_python(code, tmp_path)
    assert done.stdout == "42\n", done.stderr


def test_onnxruntime_looks_for_its_libraries_and_prints_nothing_on_stdout() -> None:
    """onnxruntime is only said to be a build for CUDA 13: stdout of a model's process is for its messages."""
    code = (
        "import onnxruntime; onnxruntime.cuda_version = '13.0'\n"
        "onnxruntime.get_available_providers = lambda: ['CUDAExecutionProvider', 'CPUExecutionProvider']\n"
        "from eardrum.engines import cuda\n"
        "from eardrum.engines.shared.onnx import find_onnx_device\n"
        "cuda.SIGNS = ()\n"
        "print(find_onnx_device(onnxruntime, 'auto').name)\n"
        "cuda.SIGNS = ('/',)\n"
        "print(find_onnx_device(onnxruntime, 'auto').name)"
    )
    done = run_python(code)
    assert done.stdout == "cpu\ncuda\n", done.stderr
    assert "libcublas.so.13" in done.stderr


def test_a_build_without_cuda_says_so_where_there_is_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_onnx_device(onnxruntime, "auto").reason == ""
    monkeypatch.setattr(cuda, "SIGNS", (str(tmp_path),))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    device = find_onnx_device(onnxruntime, "auto")
    assert device.name == "cpu"
    assert "it is built without CUDA): install onnxruntime-gpu in its place" in device.reason


@pytest.mark.parametrize(
    ("extra", "packages"),
    [
        (
            "cuda",
            "nvidia-cublas nvidia-cublas-cu12 nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft nvidia-curand",
        ),
        (
            "cuda12",
            "nvidia-cublas-cu12 nvidia-cuda-nvrtc-cu12 nvidia-cuda-runtime-cu12 nvidia-cudnn-cu12 nvidia-cufft-cu12 "
            "nvidia-curand-cu12",
        ),
    ],
)
def test_extras_bring_no_second_onnxruntime_and_no_torch(extra: str, packages: str) -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    required = [Requirement(line) for line in project["optional-dependencies"][extra]]
    assert sorted(requirement.name for requirement in required) == packages.split()
    assert all(requirement.marker and not requirement.marker.evaluate({"sys_platform": "darwin"}) for requirement in required)
