"""Builds small shared libraries with the names and folders of NVIDIA's wheels."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def build_library(folder: Path, name: str, code: str, *links: Path) -> Path:
    """Compile `code` into the shared library `name`, which needs the libraries `links`."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        pytest.skip("nothing here compiles C")
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / f"{name}.c"
    source.write_text(code)
    command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name), str(source), *map(str, links)]
    subprocess.run(command, check=True, timeout=60)
    return folder / name


def build_cublas(packages: Path, answer: int) -> Path:
    """Build cuBLAS 12 as in NVIDIA's wheel, without a path from one library to the other, and return its folder."""
    folder = packages / "nvidia" / "cublas" / "lib"
    light = build_library(folder, "libcublasLt.so.12", f"int cublasLtAnswer(void) {{ return {answer}; }}\n")
    code = "int cublasLtAnswer(void);\nint cublasAnswer(void) { return cublasLtAnswer(); }\n"
    build_library(folder, "libcublas.so.12", code, light)
    return folder
