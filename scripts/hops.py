"""Counts the files that a request passes between the socket and the engine, and with --check fails where a limit is exceeded.

A real server is run with a profile function in the gateway and in the runner. Measured are a warm upload to
`/v1/audio/transcriptions` and a warm chunk of `/v1/audio/transcriptions/stream`, each from its first byte to the call of the
engine. docs/house.md defines what counts; `--write` puts the figures there, `--list` prints the files.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
from hop_recorder import FOLDER_VARIABLE, SOURCE, Switch
from websockets.sync.client import connect

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "house.md"
BEGIN, END = "<!-- hops -->", "<!-- /hops -->"

LIMITS = {"upload": (22, 53), "live chunk": (17, 25)}
"""For each kind of request: files on its way, and files that run any code for it; timers and earlier answers add to these."""

RUNS = 5
"""A file counts if it does in most of so many runs: a timer may fire in one of them."""

DECODE_WITHIN_S = 1.0
"""Not every chunk makes the engine decode: how long to wait for that."""

WARM_UP_CHUNKS, REPEATS = 6, 4
"""Chunks of half a second that are sent before, and times that the recording may be repeated."""

SITE = f"import sys\nsys.path.append({str(ROOT / 'scripts')!r})\nimport hop_recorder\nhop_recorder.install_recorder()\n"
"""`sitecustomize`, which Python imports at the start of every process."""


Functions = dict[str, set[str]]
"""Functions by file."""


@dataclass(frozen=True)
class HopCounts:
    """The files of one kind of request, with the functions that made them count."""

    passes: Functions
    runs: Functions


@dataclass(frozen=True)
class MeasuredServer:
    """A running server with recorders."""

    port: int
    folder: Path
    switch: Switch

    def start_recorders(self) -> None:
        """Start them in the main threads of all processes that are there by now."""
        for path in self.folder.glob("*.hops"):
            os.kill(int(path.stem), signal.SIGUSR1)
        time.sleep(0.5)

    def read_counts(self, measurements: list[int]) -> HopCounts:
        """The files of most of these measurements."""
        found: dict[str, list[Functions]] = {"passes": [], "runs": []}
        lines = [line.split() for path in self.folder.glob("*.hops") for line in path.read_text().splitlines()]
        for measurement in measurements:
            for kind, one in found.items():
                one.append(defaultdict(set))
                for number, line_kind, file, function in lines:
                    if (int(number), line_kind) == (measurement, kind):
                        one[-1][file].add(function)
        return HopCounts(*map(keep_most, found.values()))


def keep_most(runs: list[Functions]) -> Functions:
    """The files that are in most of the runs, and what ran in any of them."""
    votes = Counter(file for run in runs for file in run)
    return {file: set().union(*(run.get(file, set()) for run in runs)) for file in sorted(votes) if votes[file] > len(runs) / 2}


@contextmanager
def run_measured_server() -> Iterator[MeasuredServer]:
    """Run a server with the embedded model, and recorders in all its processes."""
    with tempfile.TemporaryDirectory(prefix="eardrum-hops-") as temp:
        folder = Path(temp)
        (folder / "switch").write_bytes(bytes(2))
        (folder / "sitecustomize.py").write_text(SITE)
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("EARDRUM_", "STT_", "WHISPER_"))}
        environment |= {"PYTHONPATH": temp, FOLDER_VARIABLE: temp, "XDG_CACHE_HOME": temp, "TMPDIR": temp}
        command = [sys.executable, "-m", "eardrum", "serve", "--port", "0", "--no-wyoming"]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert process.stdout
        output: list[str] = []
        try:
            for line in process.stdout:
                output.append(line)
                if listening := re.search(r"listens on https?://\S+:(\d+)", line):
                    break
            else:
                sys.exit("The server did not start:\n" + "".join(output))
            reader = threading.Thread(target=process.stdout.read, daemon=True)
            reader.start()
            yield MeasuredServer(int(listening[1]), folder, Switch(folder / "switch"))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
            reader.join()
            process.stdout.close()


def measure_upload(server: MeasuredServer) -> HopCounts:
    """Upload the sample recording, first to warm up."""
    send_upload(server.port)
    server.start_recorders()
    measurements = []
    for _ in range(RUNS):
        send_upload(server.port, begin=server.switch.begin)
        assert server.switch.has_reached_engine
        measurements.append(server.switch.end())
    return server.read_counts(measurements)


def send_upload(port: int, begin: Callable[[], None] = lambda: None) -> None:
    """Upload as a client over a network does: the head, the form's fields and the recording arrive one after another."""
    audio = (Path(SOURCE) / "sample.ogg").read_bytes()
    fields = b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\nmoonshine-tiny-en\r\n'
    file = b'--b\r\ncontent-disposition: form-data; name="file"; filename="sample.ogg"\r\n\r\n'
    parts = [fields + file, audio[: len(audio) // 2], audio[len(audio) // 2 :] + b"\r\n--b--\r\n"]
    head = (
        f"POST /v1/audio/transcriptions HTTP/1.1\r\nhost: localhost:{port}\r\nconnection: close\r\n"
        f"content-type: multipart/form-data; boundary=b\r\ncontent-length: {sum(map(len, parts))}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        time.sleep(0.1)  # the connection is there when the request begins
        begin()
        for part in (head.encode(), *parts):
            connection.sendall(part)
            time.sleep(0.1)
        with connection.makefile("rb") as answer:
            assert b" 200 " in answer.readline()
            answer.read()


def measure_live_chunk(server: MeasuredServer) -> HopCounts:
    """Send speech in chunks of half a second, as long as it takes until enough of them made the engine decode."""
    audio, size = decode_sample() * REPEATS, 16_000
    measurements: list[int] = []
    with connect(f"ws://127.0.0.1:{server.port}/v1/audio/transcriptions/stream?model=moonshine-tiny-en") as client:
        for number, at in enumerate(range(0, len(audio), size)):
            if number >= WARM_UP_CHUNKS:
                server.switch.begin()
            client.send(audio[at : at + size])
            until = time.monotonic() + DECODE_WITHIN_S
            while time.monotonic() < until and not (number >= WARM_UP_CHUNKS and server.switch.has_reached_engine):
                time.sleep(0.05)
            if server.switch.end() and server.switch.has_reached_engine:
                measurements.append(server.switch.number)
                time.sleep(1.0)  # the engine's answer is no part of the next measurement
            if len(measurements) == RUNS:
                return server.read_counts(measurements)
    sys.exit(f"Only {len(measurements)} chunks reached the engine.")


def decode_sample() -> bytes:
    """The sample recording as s16le, mono, 16 kHz."""
    with av.open(f"{SOURCE}sample.ogg") as container:
        resampler = av.AudioResampler("s16", "mono", 16_000)
        frames = [out for frame in container.decode(audio=0) for out in resampler.resample(frame)]
    return b"".join(frame.to_ndarray().tobytes() for frame in frames)


def render_table(counts: dict[str, HopCounts]) -> str:
    """The figures as a table in Markdown."""
    lines = ["| request | files on the way | limit | files that run | limit |", "|---|---|---|---|---|"]
    for name, found in counts.items():
        limits = LIMITS[name]
        lines.append(f"| {name} | {len(found.passes)} | {limits[0]} | {len(found.runs)} | {limits[1]} |")
    return "\n".join(lines)


def list_functions(found: Functions) -> None:
    """Print the files with their functions."""
    for file, functions in found.items():
        print(f"  {file}: {', '.join(sorted(functions))}")


def write_page(table: str) -> None:
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}")


def main() -> None:
    with run_measured_server() as server:
        counts = {"upload": measure_upload(server), "live chunk": measure_live_chunk(server)}
    table = render_table(counts)
    print(table)
    if "--list" in sys.argv:
        for name, found in counts.items():
            print(f"\nOn the way of the {name}:")
            list_functions(found.passes)
            print(f"Beside the way of the {name}:")
            list_functions({file: functions for file, functions in found.runs.items() if file not in found.passes})
    if "--write" in sys.argv:
        write_page(table)
    over = [name for name, found in counts.items() if len(found.passes) > LIMITS[name][0] or len(found.runs) > LIMITS[name][1]]
    if "--check" in sys.argv and over:
        sys.exit("Over the limit: " + "; ".join(over))


if __name__ == "__main__":
    main()
