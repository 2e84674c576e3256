"""Options of `transcribe` that say what subtitles look like: as openai-whisper has them, and beyond."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from eardrum.subtitles import MOST

PANEL = "Subtitles (srt, vtt)"


class Preset(StrEnum):
    """Rules that go together."""

    BROADCAST = "broadcast"
    NONE = "none"


def _numbers(help_: str, name: str) -> typer.models.OptionInfo:
    flag = name.replace("_", "-")
    option: typer.models.OptionInfo = typer.Option(
        f"--{flag}", f"--{name}", help=help_, min=0, max=MOST[name], rich_help_panel=PANEL, show_default=False
    )
    return option


Subtitles = Annotated[
    Preset | None,
    typer.Option(help="broadcast: 2 lines of 42, 5/6 to 7 s, 20 characters/s. The options below win.", rich_help_panel=PANEL),
]
MaxLineWidth = Annotated[int | None, _numbers("Columns of a line.", "max_line_width")]
MaxLineCount = Annotated[int | None, _numbers("Lines of a cue.", "max_line_count")]
MaxWordsPerLine = Annotated[int | None, _numbers("Words of a line; alone it makes a cue of each line.", "max_words_per_line")]
HighlightWords = Annotated[
    bool | None,
    typer.Option(
        "--highlight-words/--no-highlight-words",
        "--highlight_words",
        help="Underline each word while it is said.",
        rich_help_panel=PANEL,
        show_default=False,
    ),
]
MinDuration = Annotated[float | None, _numbers("Seconds a cue stays at least, if there is room.", "min_duration")]
MaxDuration = Annotated[float | None, _numbers("Seconds a cue stays at most.", "max_duration")]
MinGap = Annotated[float | None, _numbers("Seconds between cues.", "min_gap")]
MaxCharactersPerSecond = Annotated[
    float | None, _numbers("Cues stay longer to be read at this speed, if there is room.", "max_characters_per_second")
]


def shape_fields(**options: str | float | bool | None) -> dict[str, list[str]]:
    """The options that were given, as fields of a form."""
    given = {name: value for name, value in options.items() if value is not None}
    return {name: [str(value).lower() if isinstance(value, bool) else str(value)] for name, value in given.items()}
