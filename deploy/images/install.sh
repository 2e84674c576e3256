#!/bin/sh
# The three steps that all images in this folder share.
#   install.sh libraries [EXTRAS]    /opt/eardrum with the dependencies in pyproject.toml and these extras (a,b,c)
#   install.sh package               Eardrum, into the same place, from a wheel that is built here
#   install.sh system [PACKAGES...]  the final image: packages of its distribution, the user 10001 and its folders
# Libraries come before the package, so that a change of Eardrum's code does not install them again. Variables of `libraries`:
#   INHERIT=1         use packages of the base image (PyTorch), and do not install them again
#   CONSTRAINTS=FILE  versions of the libraries; constraints.txt if unset
#   PACKAGES=...      further packages for pip, separated by spaces
set -eu

target=/opt/eardrum
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

install_into_target() {
    # pip itself stays outside: an image that runs has no use for it.
    python3 -m pip --python "$target/bin/python3" install "$@"
}

print_requirements() {
    python3 - "$1" <<'PYTHON'
import sys
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
extras = [extra for extra in sys.argv[1].split(",") if extra]
print(*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra]), sep="\n")
PYTHON
}

print_constraints() {
    # The base image decides which PyTorch there is, and with it the versions that this PyTorch demands.
    python3 - "$1" <<'PYTHON'
import re
import sys
from importlib import metadata


def read_name(line):
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]*", line)[0]).lower()


decided = {"torch"}
try:
    torch = metadata.distribution("torch")
except metadata.PackageNotFoundError:
    pass
else:
    print(f"torch=={torch.version}")
    decided.update(read_name(line) for line in torch.requires or () if "==" in line.partition(";")[0])
with open(sys.argv[1]) as file:
    print(*(line for line in file if read_name(line) not in decided), sep="", end="")
PYTHON
}

case "${1:-}" in
libraries)
    python3 -m venv --without-pip ${INHERIT:+--system-site-packages} "$target"
    print_requirements "${2:-}" >"$scratch/requirements.txt"
    print_constraints "${CONSTRAINTS:-constraints.txt}" >"$scratch/constraints.txt"
    # shellcheck disable=SC2086 # PACKAGES is a list
    install_into_target --constraint "$scratch/constraints.txt" --requirement "$scratch/requirements.txt" ${PACKAGES:-}
    ;;
package)
    python3 -m pip wheel --no-deps --wheel-dir "$scratch" .
    # By its name: pip would remember the path of a file, and Eardrum repeat it in what it says about packages.
    install_into_target --no-deps --no-index --find-links "$scratch" eardrum
    "$target/bin/eardrum" --version
    ;;
system)
    shift
    apt-get update
    apt-get install --yes --no-install-recommends tini "$@"
    rm -rf /var/lib/apt/lists/*
    groupadd --gid 10001 eardrum
    useradd --uid 10001 --gid 10001 --no-create-home --home-dir /models --shell /usr/sbin/nologin eardrum
    # Before it becomes a volume: a volume takes over owner and rights.
    install --directory --owner=10001 --group=10001 /models
    ;;
*)
    echo "install.sh libraries [EXTRAS] | package | system [PACKAGES...]" >&2
    exit 2
    ;;
esac
