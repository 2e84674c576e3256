"""Which models behind commands and addresses turn speech into text: by what the config declares, else by their names. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from eardrum import config

SPEECH = re.compile(
    r"whisper(?!er|ing|speech)|parakeet|moonshine|sensevoice|paraformer|funasr|wav2vec|voxtral|canary-\d"
    r"|audio/transcriptions|(?<![a-z])(asr|stt|transcribe|transcriptions?|speech-?to-?text)(?![a-z])"
)
"""Speech models and their servers, as people name them: `whisper-server`, `Qwen/Qwen3-ASR-1.7B`, `gpt-4o-transcribe`."""

SPEAKS = re.compile(r"(?<![a-z])tts(?![a-z])")
"""A model that goes the other way, whatever else is in its name."""

SPLIT = re.compile(r"[\s\"';&|=,]+")
"""What stands between the names in a command line, be it for a shell."""


def turns_speech_into_text(id: str, aliases: Sequence[str], entry: config.Model) -> bool:
    """Whether transcription may be asked of a model that another server serves.

    What the config declares counts, and nothing else if it does: `capabilities` (`in`, `out`), `capabilities` of `metadata` in
    Ollama's words, or the option `transcriptions`. Else its names and those in its command tell.
    """
    declared, said = entry.capabilities, entry.metadata.get("capabilities")
    if declared.inputs or declared.outputs:
        return "audio" in declared.inputs and ("text" in declared.outputs or not declared.outputs)
    if isinstance(said, list | tuple):
        return "audio" in said
    if entry.options:  # there are none but the paths of its audio routes
        return True
    names = [name.lower().replace("_", "-") for name in (id, *aliases, entry.useModelName, *_in_command(entry.cmd))]
    return any(SPEECH.search(name) and not SPEAKS.search(name) for name in names)


def takes_text_too(entry: config.Model) -> bool:
    """Whether the config declares the model as one for chats that also listens."""
    said = entry.metadata.get("capabilities")
    return "text" in entry.capabilities.inputs or (isinstance(said, list | tuple) and "completion" in said)


def _in_command(line: str) -> Iterator[str]:
    """The words of a command without their folders, since a folder may have any name. Paths of routes stay whole."""
    for word in SPLIT.split(line):
        yield word if word.endswith("audio/transcriptions") else word.rpartition("/")[2]
