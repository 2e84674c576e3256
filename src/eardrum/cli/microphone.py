"""Writes the microphone's audio to stdout: a line with the rate in Hz, then s16le mono, until the reader closes the pipe.

`python -m eardrum.cli.microphone` is a separate process, because the audio library is optional, writes to stderr by itself
and blocks.
"""

from __future__ import annotations

import sys

from eardrum.transcription import SAMPLE_RATE

try:
    import sounddevice
except ImportError:
    sys.exit("The microphone needs a package that is not installed: run pip install 'eardrum[microphone]'.")
except OSError as error:  # the package is installed, the library that it wraps is not
    sys.exit(
        f"The microphone needs the system library PortAudio ({error}): run apt install libportaudio2, or brew install portaudio."
    )

CHUNK_S = 0.1
"""Seconds of audio per write."""


def main() -> None:
    """Write the default microphone's audio to stdout."""
    try:
        rate = _choose_rate()
        size = int(rate * CHUNK_S)
        with sounddevice.RawInputStream(samplerate=rate, channels=1, dtype="int16", blocksize=size) as stream:
            sys.stdout.buffer.write(b"%d\n" % rate)
            while True:
                piece, _ = stream.read(size)
                sys.stdout.buffer.write(piece)
                sys.stdout.buffer.flush()
    except BrokenPipeError:
        sys.stdout = None  # otherwise the interpreter flushes it once more
    except (sounddevice.PortAudioError, ValueError) as error:
        sys.exit(f"Cannot open a microphone ({error}). You can also pipe audio in: arecord ... | eardrum listen --rate 16000.")


def _choose_rate() -> int:
    """Return 16 kHz, or the microphone's own rate if it does not support that."""
    try:
        sounddevice.check_input_settings(samplerate=SAMPLE_RATE, channels=1, dtype="int16")
    except sounddevice.PortAudioError:
        return int(sounddevice.query_devices(kind="input")["default_samplerate"])
    return SAMPLE_RATE


if __name__ == "__main__":
    main()
