"""Writes the microphone's audio to stdout: a line with the rate in Hz, then s16le mono, until the reader closes the pipe.

`python -m eardrum.cli.main.microphone`. It runs in a process of its own because the audio library is optional, writes to stderr
on its own, and must not block the command.
"""

from __future__ import annotations

import sys

from eardrum.transcription import SAMPLE_RATE

try:
    import sounddevice
except ImportError:
    sys.exit("The microphone needs a library that is not installed: pip install 'eardrum[microphone]'.")
except OSError as error:  # the package is there, the library that it wraps is not
    sys.exit(
        f"The microphone needs PortAudio, a library of the system ({error}): apt install libportaudio2, brew install portaudio."
    )

CHUNK_S = 0.1
"""Seconds of audio that are handed on at a time."""


def main() -> None:
    """Hand on what the default microphone hears."""
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
        sys.stdout = None  # or the interpreter would flush it once more
    except (sounddevice.PortAudioError, ValueError) as error:
        sys.exit(f"No microphone can be used ({error}). Sound can be piped in, too: arecord ... | eardrum listen --rate 16000.")


def _choose_rate() -> int:
    """16 kHz, or, where the microphone cannot do that, what it does by itself."""
    try:
        sounddevice.check_input_settings(samplerate=SAMPLE_RATE, channels=1, dtype="int16")
    except sounddevice.PortAudioError:
        return int(sounddevice.query_devices(kind="input")["default_samplerate"])
    return SAMPLE_RATE


if __name__ == "__main__":
    main()
