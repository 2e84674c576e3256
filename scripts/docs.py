"""Writes the pages that are generated from the code, or with --check fails when one is out of date."""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import typer
from starlette.applications import Starlette

from eardrum.api import openapi
from eardrum.api.key_scopes import find_scope
from eardrum.api.openapi import ApiOperation
from eardrum.cli import main as cli
from eardrum.config import ENVIRONMENT_ALIASES, ENVIRONMENT_PREFIX, Settings
from eardrum.config.llama_swap import WITHOUT_EFFECT, SharedModelSettings, SharedSettings
from eardrum.config.setting_names import list_former_names, list_llama_swap_names, list_names, list_sections, list_spellings
from eardrum.engines import registry
from eardrum.gateway.models.inventory import COMMON_OPTIONS
from eardrum.gateway.service import Service
from eardrum.server.app import RequestDispatcher, create_app
from eardrum.units import TIME

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "docs" / "reference"
EXPLANATION = ROOT / "docs" / "explanation"
PACKAGE = ROOT / "src" / "eardrum"


def main() -> None:
    stale = []
    for path, text in build_pages():
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        if "--check" in sys.argv:
            stale.append(path.name)
        else:
            path.write_text(text, encoding="utf-8")
    if stale:
        sys.exit(f"Out of date: {', '.join(stale)}. Run `make docs`.")


def build_pages() -> Iterator[tuple[Path, str]]:
    schema = Settings.model_json_schema()
    yield REFERENCE / "config.schema.json", json.dumps(format_both_spellings(schema), indent=2) + "\n"
    yield REFERENCE / "config.md", build_config_page(schema)
    yield REFERENCE / "engines.md", build_engines_page()
    yield REFERENCE / "cli.md", build_cli_page()
    yield REFERENCE / "routes.md", build_routes_page()
    yield EXPLANATION / "code-map.md", build_code_map()


def format_both_spellings(schema: dict[str, Any], where: str = "") -> dict[str, Any]:
    """The schema that takes every setting under all of its names, as the loader does.

    The other names are patterns that only they match: editors check files against patterns, and offer the names of properties
    alone, so that each setting is offered once.
    """
    definitions = {
        name: format_both_spellings(part, f"$defs/{name}/") if name in SECTIONS else part  # else the words of a choice
        for name, part in schema.get("$defs", {}).items()
    }
    section = SECTIONS[where.removeprefix("$defs/").removesuffix("/") or "Settings"]
    former = {spelling for name in list_former_names(section) for spelling in list_spellings(name)}
    patterns: dict[str, Any] = {
        f"^{other}$": {"$ref": f"#/{where}properties/{name}"} | ({"deprecated": True} if other in former else {})
        for other, name in sorted(list_names(section).items())
        if other != name
    }
    added = {"patternProperties": schema.get("patternProperties", {}) | patterns} if patterns else {}
    return schema | ({"$defs": definitions} if definitions else {}) | added


def build_routes_page() -> str:
    operations = list_operations()
    rows = {(one.path, one.method.upper() if 101 not in one.success else "WebSocket"): one for one in operations}
    table = "\n".join(
        f"| `{path}` | {method} | {find_scope(method, re.sub(r'{.*?}', 'x', path)) or 'none'} | {one.summary} |"
        for (path, method), one in rows.items()
    )
    return f"""# Routes

Generated from the routes. With `api_keys` in the config, each requires a key with its
[scope](../guides/reverse-proxy.md#keys-with-rights-models-and-limits); a path that is not a route requires `manage`. `/docs` of a
running server describes fields and answers.

| route | method | scope | |
| --- | --- | --- | --- |
{table}
"""


def list_operations() -> list[ApiOperation]:
    async def build() -> RequestDispatcher:
        dispatcher = create_app(Service(Settings()))._app
        assert isinstance(dispatcher, RequestDispatcher)
        return dispatcher

    dispatcher = asyncio.run(build())
    assert isinstance(dispatcher.fallback_app, Starlette)
    return openapi.list_operations([*dispatcher.fallback_app.routes, *dispatcher.edges])


def build_config_page(schema: dict[str, Any]) -> str:
    aliases = "\n".join(f"| `{variable}` | `{setting}` |" for variable, setting in ENVIRONMENT_ALIASES.items())
    table = SettingsTable(schema)
    shared = {"": {*SharedSettings.model_fields}, MODEL: {*SharedModelSettings.model_fields, "ttl", "concurrency_limit"}}
    own = table.list_rows(schema, wanted=lambda prefix, name: name not in shared.get(prefix, ()))
    of_models = table.list_rows(
        schema["$defs"]["ModelSettings"], MODEL, wanted=lambda prefix, name: name in shared.get(prefix, (name,))
    )
    of_servers = table.list_rows(schema, wanted=lambda prefix, name: name in shared.get(prefix, (name,)))
    former = "\n".join(
        f"| `{path}{old}` | `{path}{new}` |"
        for path, section in list_sections()
        for old, new in list_former_names(section).items()
    )
    return f"""# Settings

Generated from `src/eardrum/config/`. Everything has a default. A YAML file (`--config FILE`, or `{ENVIRONMENT_PREFIX}CONFIG`) is
overridden by the environment, the environment by `--set a.b=c`. `eardrum check FILE` prints the resulting models and all
errors and warnings.

```yaml
port: 8100
default_model: base
models:
  base:
    source: /models/base-en
    aliases: [whisper-1]
limits:
  upload_bytes: 1000000000
```

- **Several files.** `--config` may be given several times, and `--config-dir` (`{ENVIRONMENT_PREFIX}CONFIG_DIR`) reads all
  `*.yaml` and `*.yml` of a folder. Maps are joined, lists follow one another, and a setting may have one value only.
- **Environment.** A setting `a.b` is `{ENVIRONMENT_PREFIX}A__B`; lists and maps are JSON.
- **Command line.** `--set limits.requests=10`. Put a name with dots into quotes: `--set 'models."tiny.en".ttl=10m'`.
- **Unknown names.** In a file they are a warning, and names that begin with `x-` are yours. They are an error in the
  environment and after `--set`, and in a file if they may be security settings: if they resemble `api_keys`,
  `hosts`, `limits`, `origins` or `tls_...`, mention keys or certificates, or are below `limits` or `wyoming`.
- **Spelling.** Every name may be written in snake_case and in camelCase: `api_keys` is `apiKeys`, `upload_bytes` is
  `uploadBytes`. Messages use the name that your file uses.
- **Zero.** 0 is a value, not a way to say "the default": leave a setting out for that. Where 0 is allowed, the meaning is
  in the table, as in `ttl: 0`, never unloaded.
- **Times and sizes.** A time is a number of seconds, or has a unit: `10m`, `1h30m`, `500ms`, `2 days`. A size is a number
  of bytes, or has a unit: `50M`, `2.1GB` (powers of 1000), `22GiB` (of 1024). Both hold in files, in the environment and
  after `--set`.
- **Booleans.** `yes`, `no`, `on` and `off` are words, except where true or false is expected. A number in quotes is a text.
- **Editors** check the file against [config.schema.json](config.schema.json). With the YAML language server, begin the
  file with `# yaml-language-server: $schema=PATH/config.schema.json`.

| setting | type | default | meaning |
| --- | --- | --- | --- |
{chr(10).join(own)}

## Shared with llama-swap

A `config.yaml` of llama-swap works as it is: its names (in brackets where they differ) are read as the settings of this
table, and its values for "not set" (`ttl: -1`, `unloadTimeout: 0`, `concurrencyLimit: 0`) as if they were left out. All
of these settings work without llama-swap too, and those of models apply to Eardrum's own models where that makes sense.
[For llama-swap users](../guides/llama-swap.md) explains macros, ports, groups and the matrix.

| setting | type | default | meaning |
| --- | --- | --- | --- |
{chr(10).join([*of_models, *of_servers])}

## Former names

These names of earlier versions still work, with a warning that has the new one.

| former name | name |
| --- | --- |
{former}

## Names other servers use

Variables of other speech servers that set the same things here. `{ENVIRONMENT_PREFIX}...` wins over them.

| variable | setting |
| --- | --- |
{aliases}
"""


MODEL = "models.NAME."
SECTIONS = {section.__name__: section for _, section in list_sections()}
SNAKE_CASE_IN_LLAMA_SWAP = ("evict_costs", "on_startup")
Wanted = Callable[[str, str], bool]


class SettingsTable:
    """The rows of settings. What several settings hold alike is listed at the first."""

    def __init__(self, schema: dict[str, Any]):
        self._definitions = schema["$defs"]
        self._listed: dict[str, str] = {}

    def list_rows(self, node: dict[str, Any], prefix: str = "", *, wanted: Wanted) -> list[str]:
        found = []
        for name, field in node["properties"].items():
            if wanted(prefix, name):
                rows = self._format_field(f"{prefix}{name}", field, wanted, required=name in node.get("required", ()))
                found += [note_llama_swap_name(rows[0], node["title"], name), *rows[1:]] if rows else []
        return found

    def _format_field(self, path: str, field: dict[str, Any], wanted: Wanted, *, required: bool) -> list[str]:
        values = field.get("additionalProperties")
        inner, each = self._format_section(field), self._format_section(values) if isinstance(values, dict) else ""
        below = inner or each
        if (entry := self._format_section(field.get("items", {}))) in SECTIONS:  # else the words of a choice
            head = format_row(path, "list", "`[]`", field["description"])
            return [head, *self.list_rows(self._definitions[entry], f"{path}[].", wanted=wanted)]
        if not below or WITHOUT_EFFECT in field:
            return [
                format_row(
                    path,
                    describe_type(field),
                    "required" if required else f"`{json.dumps(field.get('default'))}`",
                    field["description"],
                )
            ]
        if below in self._listed:
            return [format_row(path, "map", "`{}`", f"{field['description']} See `{self._listed[below]}`.")]
        self._listed[below] = path
        head = [format_row(path, "map", "`{}`", field["description"])] if each else []
        return head + self.list_rows(self._definitions[below], f"{path}.NAME." if each else f"{path}.", wanted=wanted)

    def _format_section(self, field: dict[str, Any]) -> str:
        """The name of the definition that a value follows; empty if it has no names of its own."""
        options = [field, *field.get("anyOf", ())]
        return next((option["$ref"].removeprefix("#/$defs/") for option in options if "$ref" in option), "")


def note_llama_swap_name(row: str, section: str, name: str) -> str:
    """The row of a setting with llama-swap's name behind its own, if llama-swap has the setting and another name for it."""
    shared = SECTIONS[section].__mro__
    ours = any(name in base.__annotations__ and base.__module__.endswith("llama_swap") for base in shared if base is not object)
    if not (ours or name in ("ttl", "concurrency_limit")) or name in SNAKE_CASE_IN_LLAMA_SWAP or not row.startswith("| `"):
        return row
    theirs = {own: other for other, own in list_llama_swap_names(SECTIONS[section]).items()}.get(name)
    theirs = theirs or max(list_spellings(name) - {name}, default="")
    return row.replace("` |", f"` (`{theirs}`) |", 1) if theirs else row


def format_row(path: str, kind: str, default: str, meaning: str) -> str:
    """A row; a bar inside it would be taken for the end of a cell."""
    return " | ".join(["", f"`{path}`", *(cell.replace("|", "\\|") for cell in (kind, default, meaning)), ""]).strip()


def describe_type(field: dict[str, Any]) -> str:
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    if pattern := next((option["pattern"] for option in field.get("anyOf", ()) if "pattern" in option), ""):
        return "time" if pattern == TIME.pattern else "size"
    if "anyOf" in field:
        return next(describe_type(option) for option in field["anyOf"] if option.get("type") != "null")
    if "$ref" in field:
        return "map"
    return {"array": "list", "object": "map"}.get(field["type"], field.get("format") or field["type"])


def build_engines_page() -> str:
    cards = registry.list_cards().values()
    rows = "\n".join(format_capability_row(card) for card in cards if not card.capabilities.speak)
    voices = "\n".join(format_voice_row(card) for card in cards if card.capabilities.speak)
    return f"""# Engines

Generated from the cards of `src/eardrum/engines/`. An engine is the library that runs a model. `eardrum engines` lists
those of your machine, `eardrum pull NAME` fetches a model by one of the names below, and [which model](../models.md)
helps you choose.

A model's name chooses its engine; `engine:` in the model's config, or `default_engine`, chooses another one. A window is
the longest stretch of audio that the engine gets at once; a batch is the most windows that it decodes together.

| engine | languages | {" | ".join(ABILITIES)} | window | batch |
| --- | --- | {"--- | " * len(ABILITIES)}--- | --- |
{rows}

Engines that turn text into speech ([text to speech](../guides/speech.md)):

| engine | languages | voices |
| --- | --- | --- |
{voices}

{chr(10).join(format_engine_section(card) for card in cards)}"""


def format_capability_row(card: registry.EngineCard) -> str:
    can = card.capabilities.to_json()
    marks = " | ".join("yes" if can[name] else "no" for name in ABILITIES)
    languages = ", ".join(can["languages"]) or "many"
    return f"| [{card.name}](#{card.name}) | {languages} | {marks} | {can['max_window_s']:g} s | {can['max_batch']} |"


def format_voice_row(card: registry.EngineCard) -> str:
    can = card.capabilities
    voices = ", ".join(voice for voice, _ in can.voices) or "those of the model"
    return f"| [{card.name}](#{card.name}) | {', '.join(can.languages) or 'many'} | {voices} |"


def format_engine_section(card: registry.EngineCard) -> str:
    """The models that one engine runs, their names, and how to install it."""
    lines = [f"## {card.name}", "", f"{card.title}.", ""]
    if card.extra:
        lines.append(f"- Installed with `{card.install}` ([extras](../getting-started.md#extras)).")
    elif card.apart:
        lines.append(
            f"- Needs a separate interpreter: `{card.install}`. "
            "The path is your clone of the repository. The model's `python:` names the interpreter, as in "
            "`python: nemo/bin/python`."
        )
    elif card.remote:
        lines.append(
            "- Installed with the package; the weights are behind the address in its options ([upstreams](upstreams.md))."
        )
    else:
        lines.append("- Installed with the package.")
    if card.layouts:
        lines.append(f"- Recognises {' or '.join(format_code(layout) for layout in card.layouts)}{describe_model_types(card)}.")
    lines.append(f"- Options: {format_code(dict.fromkeys([*COMMON_OPTIONS, *card.options]))}.")
    if card.repositories:
        lines.append(f"- Takes every model called {format_code(card.repositories)}.")
    for pattern, changes in card.variants.items():
        lines.append(
            f"- Models called `{pattern}` differ: {', '.join(describe_difference(*change) for change in changes.items())}."
        )
    if card.names:
        lines += ["", "| names | model |", "| --- | --- |", *format_name_rows(card)]
    return "\n".join([*lines, ""])


def describe_model_types(card: registry.EngineCard) -> str:
    return f", with a `model_type` of {format_code(card.model_types)}" if card.model_types else ""


def describe_difference(ability: str, value: Any) -> str:
    if isinstance(value, bool):
        return ability if value else f"no {ability}"
    return f"{ability} {', '.join(map(str, value)) if isinstance(value, tuple) else value}"


def format_name_rows(card: registry.EngineCard) -> Iterator[str]:
    by_model: dict[str, list[str]] = {}
    for name, repository in card.names.items():
        by_model.setdefault(repository, []).append(name)
    return (f"| {format_code(names)} | `{repository}` |" for repository, names in by_model.items())


def build_cli_page() -> str:
    """Every command with its arguments and options, as `eardrum help` shows them."""
    group: Any = typer.main.get_command(cli.app)
    commands = {
        name: command
        for top, found in group.commands.items()
        if top != "help"
        for name, command in (
            {f"{top} {below}": inner for below, inner in found.commands.items()} if hasattr(found, "commands") else {top: found}
        ).items()
    }
    contents = "\n".join(
        f"| [`eardrum {name}`](#{name.replace(' ', '-')}) | {summarize_command(command)} |" for name, command in commands.items()
    )
    return f"""# Commands

Generated from the command line. `eardrum help COMMAND` prints the same; `eardrum --install-completion` lets your shell complete
commands and options.

| command | |
| --- | --- |
{contents}

Commands with the option `--server` are clients of a server: the one in `--server` or `EARDRUM_SERVER`, else the one on this
machine, at the port in `EARDRUM_PORT`. Without a server in the option or the variable, `transcribe` and `say` load the model
themselves. `EARDRUM_KEY` is one of the server's `api_keys`. An error is a line on stderr that begins with `eardrum:`, and the
exit code is 1.

{chr(10).join(format_command_section(name, command) for name, command in commands.items())}"""


def summarize_command(command: Any) -> str:
    return (command.help or "").split("\n\n")[0].replace("\n", " ").strip()


def format_command_section(name: str, command: Any) -> str:
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option" and not each.hidden and each.name != "help"]
    usage = " ".join(["eardrum", name, *(["[OPTIONS]"] if options else []), *map(format_argument, arguments)])
    help_text = inspect.cleandoc(command.help or "")
    lines = [f"## {name}", "", help_text, "", "```console", f"$ {usage}", "```", ""]
    if rows := [(format_argument(each), str(each.help or "")) for each in arguments]:
        lines += [
            "| argument | meaning |",
            "| --- | --- |",
            *(format_cells(f"`{first}`", meaning) for first, meaning in rows),
            "",
        ]
    if options:
        lines += ["| option | default | meaning |", "| --- | --- | --- |", *map(format_option_row, options), ""]
    return "\n".join(lines)


def get_argument_name(argument: Any) -> str:
    return argument.metavar or (argument.name or "").upper()


def format_argument(argument: Any) -> str:
    name = get_argument_name(argument).removesuffix("...") + ("..." if argument.nargs == -1 else "")
    return name if argument.required else f"[{name}]"


def format_option_row(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts] if "_" not in name)
    value = "" if option.is_flag or option.count else f" {get_value_name(option)}"
    shown = option.show_default if isinstance(option.show_default, str) else ""
    if not shown and option.default not in (None, "", False, ()) and not option.is_flag and not callable(option.default):
        shown = ", ".join(map(str, option.default)) if isinstance(option.default, list | tuple) else str(option.default)
    variable = f" (`{option.envvar}`)" if option.envvar else ""
    return format_cells(f"{names}{value}", shown, f"{option.help or ''}{variable}")


def get_value_name(option: Any) -> str:
    if option.metavar:
        return str(option.metavar)
    descriptor = option.type_descriptor
    if choices := getattr(descriptor, "choices", None):
        return " or ".join(str(getattr(choice, "value", choice)) for choice in choices)
    annotation = str(getattr(descriptor, "annotation", ""))
    return "N" if "int" in annotation or "float" in annotation else "PATH" if "Path" in annotation else "TEXT"


def format_cells(*texts: str) -> str:
    """A row of a table; a bar inside a cell would be taken for its end."""
    return f"| {' | '.join(' '.join(text.split()).replace('|', chr(92) + '|') for text in texts)} |"


def build_code_map() -> str:
    """Every module with the first sentence of its docstring."""
    folders: dict[str, list[tuple[str, str]]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        folder = path.parent.relative_to(PACKAGE).as_posix()
        about = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        folders.setdefault("" if folder == "." else folder, []).append((path.name, " ".join(about.split("\n\n")[0].split())))
    sections = "\n".join(format_folder_section(folder, dict(modules)) for folder, modules in sorted(folders.items()))
    return f"""# Code map

Generated from the modules' docstrings: all of `src/eardrum/`. [Architecture](architecture.md) explains how they work
together. Imports point down; the contracts of import-linter in `pyproject.toml` check it.

{sections}"""


def format_folder_section(folder: str, modules: dict[str, str]) -> str:
    about = modules.pop("__init__.py", "")
    rows = [format_cells(f"`{name}`", text) for name, text in modules.items()]
    table = ["| module | |", "| --- | --- |", *rows, ""] if rows else []
    return "\n".join([f"## {folder or 'eardrum'}/", "", *([about, ""] if about else []), *table])


def format_code(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


ABILITIES = ("translate", "words", "logprobs", "prompt", "hotwords", "temperature")


if __name__ == "__main__":
    main()
