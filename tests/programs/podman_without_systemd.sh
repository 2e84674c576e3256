#!/bin/bash
# podman on a machine without systemd and without the right to set limits, as tests have it: a container there.
#   podman_without_systemd.sh STORE COMMAND ...
# - Limits and control groups cannot be set: options for them are left out.
# - crun finds no control groups of version 2 alone: the mixed tree is hidden from it.
# - Health checks are timers of systemd: the tests run the command of the health check themselves.
# - crun gives the null device to the container's user if it is the standard input, on the host too: it gets a pipe, and
#   --interactive, without which the null device takes the pipe's place.
set -euo pipefail
store=$1
shift
command=("$@")
if [[ ${1:-} == run || ${1:-} == create ]]; then
    command=("$1" --interactive --cgroups=disabled --no-healthcheck --ulimit nofile=1024:4096 --ulimit nproc=1024:4096)
    shift
    while (($#)); do
        case $1 in
        -m | --memory | --pids-limit | --cpus) shift 2 ;;
        --memory=* | --pids-limit=* | --cpus=*) shift ;;
        *)
            command+=("$1")
            shift
            ;;
        esac
    done
fi
if [[ ${1:-} == exec ]]; then
    command=("$1" --interactive "${@:2}")
fi
export CONTAINERS_CONF=$store/containers.conf
# shellcheck disable=SC2016 # expanded by the inner shell
: | exec unshare --mount bash -c 'umount /sys/fs/cgroup/unified 2>/dev/null || true; exec podman "$@"' podman \
    --root "$store/root" --runroot "$store/run" "${command[@]}"
