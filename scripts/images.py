"""Builds the container images of `deploy/images`, with Docker, or with buildah where there is no Docker: `make image`.

`python scripts/images.py cpu` builds `eardrum:cpu`. Where its base image cannot be had, because no registry is reachable, one
that debootstrap makes of Debian's packages takes its place. Images whose base has more for a GPU are built on that one only with
`--stand-in`, without the parts that it lacks: that proves that the files can be built, and not that a GPU can use the result.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "deploy" / "images"
STORE = Path(os.environ.get("EARDRUM_IMAGE_STORE") or "/var/tmp/eardrum-images")
"""Where buildah and podman keep images, and with them the layers that the next build need not make again."""
STORE_OPTIONS = ("--root", str(STORE / "root"), "--runroot", str(STORE / "run"))
BUILDAH = ("buildah", *STORE_OPTIONS)
BUILDAH_BUILD = (*BUILDAH, "build", "--isolation", "chroot", "--network", "host", "--format", "docker")

TOOLS = ("buildah", "podman", "crun", "debootstrap", "fuse-overlayfs", "uidmap")
"""Packages of Debian."""
ONLY_TOOLS = "tools"
PUBLISHED_BASE, RECENT_BASE = "python:3.11-slim-bookworm", "python:3.13-slim-trixie"
RELEASES = {PUBLISHED_BASE: "bookworm", RECENT_BASE: "trixie"}
"""Base images that can be made of Debian's packages, and the release of each."""
LOCAL = "localhost/eardrum-base/"
"""Beginning of the names of images that are made here."""
PYTORCH_BASE = f"{LOCAL}pytorch"
"""The base with PyTorch, for images whose own base has it."""
APT_KEEPS_NOTHING = 'Dir::Cache::pkgcache "";\nDir::Cache::srcpkgcache "";\nAPT::Keep-Downloaded-Packages "false";\n'
"""Settings of apt, as in the images of Docker Hub: its caches would be larger than its lists."""
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")

VARIANTS = {"cuda-lean": ("cuda", {"BASE": PUBLISHED_BASE, "EXTRAS": "cuda12,onnx,zeroconf,otel"})}
"""Images that are built from the Dockerfile of another one, with these arguments."""

STAND_INS = {
    "cuda": {"BASE": PYTORCH_BASE, "EXTRAS": "onnx,openai-whisper,transformers,zeroconf,otel,telegram"},
    "nemo": {"BASE": PYTORCH_BASE, "NEMO": ""},
    "rocm": {"BASE": RECENT_BASE, "ROCM": ""},  # the headers of the older release are too old for Vulkan
}
"""Arguments with which an image for a GPU is built on a base that has nothing for it."""

PULL_TIMEOUT_S = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = {path.name.split(".")[0] for path in FOLDER.glob("*.Dockerfile")}.union(VARIANTS)
    parser.add_argument("names", nargs="+", choices=[*sorted(names), ONLY_TOOLS], help=f"{ONLY_TOOLS}: only install what builds")
    parser.add_argument("--stand-in", action="store_true", help="build on a base that has nothing for a GPU")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE", help="as for docker build; repeatable")
    given = parser.parse_args()
    for name in given.names:
        if name == ONLY_TOOLS:
            if not has_docker():
                install_tools()
            continue
        arguments = dict(argument.split("=", 1) for argument in given.build_arg)
        if given.stand_in:
            arguments = STAND_INS.get(name, {}) | arguments
        build_image(name, arguments)
        print(f"{name_image(name)}: {measure_image(name) / 1e6:.0f} MB")


def has_docker() -> bool:
    """Whether a Docker engine answers."""
    return bool(shutil.which("docker")) and not subprocess.run(["docker", "info"], capture_output=True, check=False).returncode


def name_image(name: str) -> str:
    """Return the name under which the image is kept: buildah's local images have a host."""
    return f"eardrum:{name}" if has_docker() else f"localhost/eardrum:{name}"


def build_image(name: str, arguments: dict[str, str] | None = None) -> None:
    """Build one image. Where its base is `PUBLISHED_BASE` and cannot be pulled, build it on Debian's packages."""
    source, variant = VARIANTS.get(name, (name, {}))
    file, arguments = FOLDER / f"{source}.Dockerfile", variant | (arguments or {})
    arguments["BASE"] = provide_base(arguments.get("BASE") or find_base(file))
    command = ["docker", "build"] if has_docker() else [*BUILDAH_BUILD, "--layers"]
    options = [option for item in arguments.items() for option in ("--build-arg", "=".join(item))]
    cache = STORE / "tmp"  # buildah keeps what is mounted as a cache in TMPDIR, for the next build
    cache.mkdir(parents=True, exist_ok=True)
    run(*command, *options, "--file", str(file), "--tag", name_image(name), str(ROOT), environment={"TMPDIR": str(cache)})


def measure_image(name: str) -> int:
    """Return the size of the unpacked image, in bytes."""
    command = ["docker"] if has_docker() else ["podman", *STORE_OPTIONS]
    inspect = [*command, "image", "inspect", "--format", "{{.Size}}", name_image(name)]
    return int(subprocess.run(inspect, capture_output=True, text=True, check=True).stdout)


def find_base(file: Path) -> str:
    """Return the default of a Dockerfile's argument BASE."""
    found = re.search(r"^ARG BASE=(\S+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    assert found
    return found[1]


def provide_base(base: str) -> str:
    """Return the base, or the name of the image that takes its place here."""
    if not has_docker():
        install_tools()
    if base == PYTORCH_BASE:
        make_pytorch_base()
    elif base in RELEASES and not has_docker() and not can_pull(base):
        return make_python_base(base)
    return base


def can_pull(image: str) -> bool:
    """Whether the image is here, or a registry that the machine is configured for has it."""
    command = [*BUILDAH, "pull", "--policy", "missing", image]
    try:
        return not subprocess.run(command, capture_output=True, timeout=PULL_TIMEOUT_S, check=False).returncode
    except subprocess.TimeoutExpired:
        return False


def is_built(image: str) -> bool:
    inspect = ["docker", "image", "inspect"] if has_docker() else [*BUILDAH, "inspect", "--type", "image"]
    return not subprocess.run([*inspect, image], capture_output=True, check=False).returncode


def install_tools() -> None:
    """Install what builds images without Docker, if it is missing. Needs Debian and root."""
    missing = [package for package in TOOLS if not is_installed(package)]
    if missing:
        run("apt-get", "update", "--quiet")
        run("apt-get", "install", "--quiet", "--yes", "--no-install-recommends", *missing)


def is_installed(package: str) -> bool:
    command = ["dpkg-query", "--show", "--showformat", "${Status}", package]
    return "install ok installed" in subprocess.run(command, capture_output=True, text=True, check=False).stdout


def make_pytorch_base() -> None:
    """Make an image of Python and the PyTorch of constraints.txt, if there is none yet."""
    if is_built(PYTORCH_BASE):
        return
    (pytorch,) = re.findall(r"^torch==\S+", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "Dockerfile").write_text(
            f"FROM {provide_base(PUBLISHED_BASE)}\nRUN python3 -m pip install --no-cache-dir {pytorch}\n"
        )
        run(*(["docker", "build"] if has_docker() else BUILDAH_BUILD), "--tag", PYTORCH_BASE, folder)


def make_python_base(base: str) -> str:
    """Make an image like one of `RELEASES` of Debian's packages, if there is none yet, and return its name."""
    made, debian = LOCAL + base, f"{LOCAL}debian:{RELEASES[base]}-slim"
    if is_built(made):
        return made
    if not is_built(debian):
        make_debian_base(RELEASES[base], debian)
    with tempfile.TemporaryDirectory() as folder:
        context = Path(folder)
        # Where packages come through a proxy with a certificate of its own, pip has to trust it inside too.
        shutil.copy(CERTIFICATES, context / "certificates.crt")
        (context / "Dockerfile").write_text(
            f"FROM {debian}\n"
            "RUN apt-get update && apt-get install --yes --no-install-recommends python3 python3-pip python3-venv \\\n"
            "    && rm -rf /var/lib/apt/lists/* /usr/lib/python3*/EXTERNALLY-MANAGED \\\n"
            "    && ln -s /usr/bin/python3 /usr/bin/pip3 /usr/local/bin/\n"
            "COPY certificates.crt /etc/ssl/certs/ca-certificates.crt\n"
            "RUN printf '[global]\\ncert = /etc/ssl/certs/ca-certificates.crt\\n' >/etc/pip.conf\n"
        )
        run(*BUILDAH_BUILD, "--tag", made, folder)
    return made


def make_debian_base(release: str, name: str) -> None:
    """Make an image like Docker Hub's `debian:RELEASE-slim`."""
    with tempfile.TemporaryDirectory(dir=STORE) as folder:
        root = Path(folder, "root")
        run("debootstrap", "--variant=minbase", "--include=ca-certificates", release, str(root), find_mirror())
        for unneeded in ("var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale"):
            for path in (root / unneeded).iterdir():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        (root / "etc/apt/apt.conf.d/docker-clean").write_text(APT_KEEPS_NOTHING)
        container = subprocess.run([*BUILDAH, "from", "scratch"], capture_output=True, text=True, check=True).stdout.strip()
        try:
            run(*BUILDAH, "add", "--quiet", container, str(root), "/")
            path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
            run(*BUILDAH, "config", "--env", path, "--cmd", "bash", container)
            run(*BUILDAH, "commit", "--quiet", container, name)
        finally:
            run(*BUILDAH, "rm", container)


def find_mirror() -> str:
    """Return the address from which this machine's own packages come."""
    for file in [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]:
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        if found := re.search(r"^(?:URIs:|deb(?: \[.*?\])?) +(\S+/debian/?)(?:\s|$)", text, re.MULTILINE):
            return found[1]
    sys.exit("This machine's apt has no source for Debian: there is nothing to make a base image of.")


def run(*command: str, environment: dict[str, str] | None = None) -> None:
    print("+", *command, flush=True)
    # Not the null device: crun gives the standard input of a container to its user, on the host too.
    subprocess.run(command, check=True, input=b"", env=os.environ | (environment or {}))


if __name__ == "__main__":
    main()
