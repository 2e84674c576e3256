"""A real Postgres for tests: Debian's, on a socket in a folder of its own."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eardrum.jobs.postgres import PostgresDatabase
from eardrum.jobs.store import JobStore

PROGRAMS = Path("/usr/lib/postgresql")
NUMBERS = itertools.count()
RUNNING: list[Path] = []
"""The folders of the running servers' sockets; the last one is used."""


@contextmanager
def run_postgres() -> Iterator[None]:
    """Run a server for the block."""
    found = sorted(PROGRAMS.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    assert found, "Postgres is missing: apt-get install postgresql"
    programs = found[-1].parent
    folder = Path(tempfile.mkdtemp(prefix="eardrum-pg-", dir="/tmp"))  # the tests' own folder is closed to other users
    as_user: list[str] = []
    if os.geteuid() == 0:  # Postgres refuses to run as root
        user = pwd.getpwnam("postgres")
        os.chown(folder, user.pw_uid, user.pw_gid)
        as_user = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    data = str(folder / "data")
    subprocess.run(
        [*as_user, programs / "initdb", "-D", data, "-U", "test", "-A", "trust", "--no-sync"],
        check=True,
        stdout=subprocess.DEVNULL,
        cwd="/",
    )
    options = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off"
    control = [*as_user, str(programs / "pg_ctl"), "-D", data, "-w"]
    try:
        subprocess.run(
            [*control, "-l", str(folder / "log"), "-o", options, "start"], check=True, stdout=subprocess.DEVNULL, cwd="/"
        )
        RUNNING.append(folder)
        try:
            yield
        finally:
            RUNNING.remove(folder)
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=True, stdout=subprocess.DEVNULL, cwd="/")
        shutil.rmtree(folder)


def create_database() -> str:
    """Create an empty database; returns its address."""
    folder = RUNNING[-1]
    name = f"test{next(NUMBERS)}"
    subprocess.run(["psql", "-h", folder, "-U", "test", "-d", "postgres", "-qc", f"create database {name}"], check=True)
    return f"postgresql://test@/{name}?host={folder}"


async def create_postgres_store() -> JobStore:
    """An empty store on Postgres."""
    made = JobStore(PostgresDatabase(create_database()))
    await made.open()
    return made
