"""Options shared by several commands, and the options of `transcribe`.

The subtitle options are named as in openai-whisper, with additions. Options may be written with underscores, as there.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from eardrum import config
from eardrum.cli.recordings import SUFFIXES
from eardrum.subtitles import MAX_RULE_VALUES
from eardrum.units import parse_seconds


def parse_period(text: str) -> float:
    """Parse a time on the command line, in seconds."""
    try:
        return parse_seconds(text)
    except ValueError as error:
        raise typer.BadParameter(f"{error}.") from None


ConfigFileOption = Annotated[
    list[Path] | None, typer.Option("--config", metavar="FILE", help="YAML file with settings; repeatable.")
]
ConfigFolderOption = Annotated[
    Path | None, typer.Option("--config-dir", metavar="FOLDER", help="Folder of YAML files, read after --config.")
]
AssignmentsOption = Annotated[list[str] | None, typer.Option("--set", metavar="a.b=c", help="Override one setting; repeatable.")]
CertificateOption = Annotated[
    Path | None,
    typer.Option(
        envvar=config.CLIENT_CERTIFICATE_VARIABLE,
        metavar="FILE",
        help="PEM file with the server's certificate or its authority's, if this machine does not trust it.",
    ),
]
KeyOption = Annotated[
    str, typer.Option(envvar=config.CLIENT_KEY_VARIABLE, metavar="KEY", help="One of the server's `api_keys`, if it has any.")
]
ServerOption = Annotated[
    str,
    typer.Option(
        envvar=config.CLIENT_SERVER_VARIABLE,
        metavar="URL",
        show_default="http://127.0.0.1:8100; EARDRUM_HOST and EARDRUM_PORT change it",
        help="Address of the server.",
    ),
]

InputsArgument = Annotated[
    list[str],
    typer.Argument(help="Audio or video files, folders (with subfolders), patterns, pipes; `-` is stdin.", metavar="FILES"),
]
ModelOption = Annotated[
    str, typer.Option(metavar="MODEL", help="Model, alias, or folder with a model. Without it: the default model.")
]
LanguageOption = Annotated[str, typer.Option(metavar="CODE", help="Spoken language, such as en or de. Without it: detected.")]
TranslateOption = Annotated[bool, typer.Option("--translate", help="Translate into English.")]
PromptOption = Annotated[str, typer.Option(metavar="TEXT", help="Text that could precede the audio; guides style and names.")]
HotwordsOption = Annotated[
    list[str] | None, typer.Option(metavar="WORDS", help="Words and names to expect, separated by commas; repeatable.")
]
WordsOption = Annotated[bool, typer.Option("--words", help="Add the times of words (with verbose_json).")]
DiarizeOption = Annotated[bool, typer.Option("--diarize", help="Label speakers (with srt, vtt and verbose_json).")]
MinSpeakersOption = Annotated[int | None, typer.Option(min=1, max=1000, metavar="N", help="Least number of speakers.")]
MaxSpeakersOption = Annotated[int | None, typer.Option(min=1, max=1000, metavar="N", help="Largest number of speakers.")]
AudioTrackOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Audio track, counted from 1. Without it: the default track, or the first one that is not silent.",
    ),
]
FormatOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FORMAT", show_default="text", help=f"Output format: {', '.join(SUFFIXES)}. Repeatable, or separated by commas."
    ),
]
OutputDirOption = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Write one file per recording and format here, instead of to stdout.")
]
SkipExistingOption = Annotated[bool, typer.Option("--skip-existing", help="Skip recordings whose output files exist.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace existing output files.")]
OptionalServerOption = Annotated[
    str,
    typer.Option(
        envvar=config.CLIENT_SERVER_VARIABLE,
        metavar="URL",
        help="Use this server, such as http://127.0.0.1:8100. Without it: transcribe here.",
    ),
]


SUBTITLES_PANEL = "Subtitles (srt, vtt)"


class SubtitlePreset(StrEnum):
    """Names of sets of subtitle rules."""

    BROADCAST = "broadcast"
    NONE = "none"


def _create_number_option(help_: str, name: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        f"--{name.replace('_', '-')}",
        help=help_,
        metavar="N",
        min=0,
        max=MAX_RULE_VALUES[name],
        rich_help_panel=SUBTITLES_PANEL,
        show_default=False,
    )
    return option


SubtitlesOption = Annotated[
    SubtitlePreset | None,
    typer.Option(
        help="broadcast: 2 lines of 42 columns, 0.83 to 7 s, 20 characters/s. The options below override it.",
        rich_help_panel=SUBTITLES_PANEL,
    ),
]
MaxLineWidthOption = Annotated[int | None, _create_number_option("Maximum columns per line.", "max_line_width")]
MaxLineCountOption = Annotated[int | None, _create_number_option("Maximum lines per cue.", "max_line_count")]
MaxWordsPerLineOption = Annotated[
    int | None,
    _create_number_option("Maximum words per line; without the other options every line is a cue.", "max_words_per_line"),
]
HighlightWordsOption = Annotated[
    bool | None,
    typer.Option(
        "--highlight-words/--no-highlight-words",
        help="Underline each word while it is spoken.",
        rich_help_panel=SUBTITLES_PANEL,
        show_default=False,
    ),
]
MinDurationOption = Annotated[
    float | None, _create_number_option("Minimum seconds per cue, where the next cue allows it.", "min_duration")
]
MaxDurationOption = Annotated[float | None, _create_number_option("Maximum seconds per cue.", "max_duration")]
MinGapOption = Annotated[float | None, _create_number_option("Minimum seconds between cues.", "min_gap")]
MaxCharactersPerSecondOption = Annotated[
    float | None,
    _create_number_option(
        "Reading speed: cues stay longer to allow it, where the next cue allows it.", "max_characters_per_second"
    ),
]


def build_subtitle_fields(**options: str | float | bool | None) -> dict[str, list[str]]:
    """Build form fields from the options that were given."""
    given = {name: value for name, value in options.items() if value is not None}
    return {name: [str(value).lower() if isinstance(value, bool) else str(value)] for name, value in given.items()}
