"""Certificates for tests, signed by themselves."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def create_certificate(folder: Path, name: str = "server", password: str = "") -> tuple[Path, Path]:
    """A certificate for this machine, and its key."""
    if not shutil.which("openssl"):
        pytest.skip("needs the program openssl")
    made, key = folder / f"{name}.crt", folder / f"{name}.key"
    secret = ["-passout", f"pass:{password}"] if password else ["-noenc"]
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    names = ["-subj", "/CN=eardrum test", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", *curve, *secret, "-days", "2", *names, "-keyout", str(key), "-out", str(made)]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    return made, key
