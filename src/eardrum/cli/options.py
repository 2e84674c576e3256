"""Options shared by several commands, and the options of `transcribe`.

The subtitle options are named as in openai-whisper, with additions.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from eardrum import config
from eardrum.cli.recordings import SUFFIXES
from eardrum.subtitles import MAX_RULE_VALUES

ConfigFileOption = Annotated[list[Path] | None, typer.Option("--config", help="YAML file with settings; repeatable.")]
ConfigFolderOption = Annotated[Path | None, typer.Option("--config-dir", help="Folder of YAML files, read after --config.")]
AssignmentsOption = Annotated[list[str] | None, typer.Option("--set", metavar="a.b=c", help="Override one setting; repeatable.")]
CertificateOption = Annotated[
    Path | None,
    typer.Option(
        envvar=config.CLIENT_CERTIFICATE_VARIABLE,
        help="PEM file with the server's certificate, or its signer's, if this system does not trust it.",
    ),
]
KeyOption = Annotated[str, typer.Option(envvar=config.CLIENT_KEY_VARIABLE, help="One of the server's `api_keys`, if it has any.")]
ServerOption = Annotated[
    str,
    typer.Option(
        envvar=config.CLIENT_SERVER_VARIABLE,
        show_default="http://127.0.0.1:8100, or where EARDRUM_HOST and EARDRUM_PORT say that it listens",
        help="The server to ask.",
    ),
]

InputsArgument = Annotated[
    list[str],
    typer.Argument(help="Audio or video files, folders with all below them, patterns, pipes; `-` is stdin.", metavar="FILES..."),
]
ModelOption = Annotated[str, typer.Option(help="Model or alias, or a folder with a model; the default model if left out.")]
LanguageOption = Annotated[str, typer.Option(help="Language spoken, as a code; detected if left out.")]
TranslateOption = Annotated[bool, typer.Option("--translate", help="Translate into English.")]
PromptOption = Annotated[str, typer.Option(help="Text that might come before: its style and names guide the model.")]
HotwordsOption = Annotated[list[str] | None, typer.Option(help="Words and names to listen for, separated by commas; repeatable.")]
WordsOption = Annotated[bool, typer.Option("--words", help="With verbose_json: when each word was said, too.")]
AudioTrackOption = Annotated[
    int | None,
    typer.Option(min=1, help="Which audio track, counted from 1; the default one, or the first with sound, if left out."),
]
FormatOption = Annotated[
    list[str] | None,
    typer.Option(show_default="text", help=f"What to write: {', '.join(SUFFIXES)}. Repeatable, or separated by commas."),
]
OutputDirOption = Annotated[Path | None, typer.Option(help="Write one file per recording here, not to the terminal.")]
SkipExistingOption = Annotated[bool, typer.Option("--skip-existing", help="Leave out what has its text already.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Write over the texts that are there already.")]
OptionalServerOption = Annotated[
    str,
    typer.Option(
        envvar=config.CLIENT_SERVER_VARIABLE, help="Use this server, as in http://127.0.0.1:8100; without it none is needed."
    ),
]


SUBTITLES_PANEL = "Subtitles (srt, vtt)"


class SubtitlePreset(StrEnum):
    """Rules that go together."""

    BROADCAST = "broadcast"
    NONE = "none"


def _create_number_option(help_: str, name: str) -> typer.models.OptionInfo:
    flag = name.replace("_", "-")
    option: typer.models.OptionInfo = typer.Option(
        f"--{flag}",
        f"--{name}",
        help=help_,
        min=0,
        max=MAX_RULE_VALUES[name],
        rich_help_panel=SUBTITLES_PANEL,
        show_default=False,
    )
    return option


SubtitlesOption = Annotated[
    SubtitlePreset | None,
    typer.Option(
        help="broadcast: 2 lines of 42, 5/6 to 7 s, 20 characters/s. The options below win.", rich_help_panel=SUBTITLES_PANEL
    ),
]
MaxLineWidthOption = Annotated[int | None, _create_number_option("Columns of a line.", "max_line_width")]
MaxLineCountOption = Annotated[int | None, _create_number_option("Lines of a cue.", "max_line_count")]
MaxWordsPerLineOption = Annotated[
    int | None, _create_number_option("Words of a line; alone it makes a cue of each line.", "max_words_per_line")
]
HighlightWordsOption = Annotated[
    bool | None,
    typer.Option(
        "--highlight-words/--no-highlight-words",
        "--highlight_words",
        help="Underline each word while it is said.",
        rich_help_panel=SUBTITLES_PANEL,
        show_default=False,
    ),
]
MinDurationOption = Annotated[
    float | None, _create_number_option("Seconds a cue stays at least, if there is room.", "min_duration")
]
MaxDurationOption = Annotated[float | None, _create_number_option("Seconds a cue stays at most.", "max_duration")]
MinGapOption = Annotated[float | None, _create_number_option("Seconds between cues.", "min_gap")]
MaxCharactersPerSecondOption = Annotated[
    float | None,
    _create_number_option("Cues stay longer to be read at this speed, if there is room.", "max_characters_per_second"),
]


def build_subtitle_fields(**options: str | float | bool | None) -> dict[str, list[str]]:
    """The options that were given, as fields of a form."""
    given = {name: value for name, value in options.items() if value is not None}
    return {name: [str(value).lower() if isinstance(value, bool) else str(value)] for name, value in given.items()}
