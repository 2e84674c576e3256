"""Records in a running server which files a request passes on its way to the engine. Part of `scripts/hops.py`.

Every process of the measured server imports this module at its start.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
import threading
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

SOURCE = f"{Path(__file__).parent.parent / 'src' / 'eardrum'}{os.sep}"

FOLDER_VARIABLE = "HOPS_FOLDER"
"""Where the processes write their records. Set only in the measured server."""

C_HANDOVERS = {"create_task", "set_result", "call_soon", "call_soon_threadsafe", "write", "writelines"}
"""C functions that give something to another task, thread or process; `write` only of transports."""
THREAD_HANDOVERS = {threading.Thread.start.__code__, threading.Condition.notify.__code__}
THREAD_WAIT = threading.Condition.wait.__code__
LOOP_FILES = ("asyncio/runners.py", "asyncio/base_events.py", "threading.py")
"""Below their frames lies the start of the process, not the request."""

RESUME_AFTER_AWAIT = 3
COROUTINE, ASYNC_GENERATOR = 0x80, 0x200

MIN_AUDIO_BYTES = 200
"""Fewer are a header's."""
SAMPLE_TYPES = ("ndarray", "AudioFrame", "async_generator_wrapped_value")


class HopRecorder:
    """The profile function of one process. Files of the package are recorded while the switch is on, each once a measurement."""

    def __init__(self, folder: Path):
        self._switch = Switch(folder / "switch")
        self._output = os.open(folder / f"{os.getpid()}.hops", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._recorded: set[tuple[int, str, str, str]] = set()

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        """Record one event of the interpreter."""
        if not self._switch.measurement or self._switch.has_reached_engine:
            return
        code = frame.f_code
        if event == "call":
            self._record_call(frame, code)
        elif event == "c_call":
            if arg.__name__ in C_HANDOVERS and (not arg.__name__.startswith("write") or _is_transport(arg.__self__)):
                self._record_stack(frame)
        elif event == "c_return":
            if code is THREAD_WAIT:
                self._record_stack(frame.f_back)
        elif event == "return" and code.co_filename.startswith(SOURCE) and _gives_audio(code, arg):
            self._record("passes", code)

    def _record_call(self, frame: FrameType, code: CodeType) -> None:
        if code in THREAD_HANDOVERS:
            self._record_stack(frame.f_back)
        if not code.co_filename.startswith(SOURCE) or code.co_name == "<module>":
            return
        self._record("runs", code)
        if _is_resumed(frame):
            self._record("passes", code)
        if code.co_name == "transcribe" and code.co_filename.startswith(f"{SOURCE}engines{os.sep}"):
            self._record_stack(frame.f_back)
            self._switch.mark_engine_reached()

    def _record_stack(self, frame: FrameType | None) -> None:
        while frame and not frame.f_code.co_filename.endswith(LOOP_FILES):
            if frame.f_code.co_filename.startswith(SOURCE):
                self._record("passes", frame.f_code)
            frame = frame.f_back

    def _record(self, kind: str, code: CodeType) -> None:
        key = self._switch.measurement, kind, code.co_filename.removeprefix(SOURCE), code.co_qualname
        if key not in self._recorded:
            self._recorded.add(key)
            os.write(self._output, " ".join(map(str, key)).replace("<locals>.", "").encode() + b"\n")


def _is_resumed(frame: FrameType) -> bool:
    """Whether a coroutine goes on after it waited."""
    resumes = frame.f_code.co_code[frame.f_lasti + 1] & 3
    return bool(frame.f_code.co_flags & (COROUTINE | ASYNC_GENERATOR)) and resumes == RESUME_AFTER_AWAIT


def _gives_audio(code: CodeType, value: object) -> bool:
    """Whether a function returns or yields audio: bytes, samples, or what holds them."""
    if code.co_name in ("<genexpr>", "<lambda>", "__init__"):
        return False
    if isinstance(value, list | tuple) and value:
        value = value[0]
    if isinstance(value, bytes | bytearray | memoryview):
        return len(value) >= MIN_AUDIO_BYTES
    return type(value).__name__ in SAMPLE_TYPES or hasattr(value, "audio") or hasattr(value, "window")


def _is_transport(value: object) -> bool:
    return "Transport" in type(value).__name__


class Switch:
    """Two bytes that all processes share: the number of the measurement, 0 for none, and whether the engine was called."""

    def __init__(self, path: Path):
        with path.open("r+b") as file:
            self._bytes = mmap.mmap(file.fileno(), 2)
        self.number = 0
        """Of the last measurement."""

    @property
    def measurement(self) -> int:
        return self._bytes[0]

    @property
    def has_reached_engine(self) -> bool:
        return bool(self._bytes[1])

    def mark_engine_reached(self) -> None:
        self._bytes[1] = 1

    def begin(self) -> None:
        """Begin the next measurement."""
        self.number += 1
        self._bytes[1] = 0
        self._bytes[0] = self.number

    def end(self) -> int:
        """End the measurement, and return its number; 0 if there was none."""
        number, self._bytes[0] = self._bytes[0], 0
        return number


def install_recorder() -> None:
    """Record in this process: in its threads from the start, in the main thread after `SIGUSR1`: it would start slowly."""
    recorder = HopRecorder(Path(os.environ[FOLDER_VARIABLE]))
    threading.setprofile(recorder)
    signal.signal(signal.SIGUSR1, lambda *_: sys.setprofile(recorder))
