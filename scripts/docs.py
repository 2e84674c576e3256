"""Writes the pages that are generated from the code, or with --check fails when one is out of date."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from eardrum.config import ENVIRONMENT_ALIASES, ENVIRONMENT_PREFIX, Settings
from eardrum.config.llama_swap import WITHOUT_EFFECT, SharedModelSettings, SharedSettings
from eardrum.config.setting_names import list_spellings
from eardrum.engines import registry
from eardrum.gateway.models.inventory import COMMON_OPTIONS
from eardrum.units import TIME

REFERENCE = Path(__file__).parent.parent / "docs" / "reference"


def main() -> None:
    stale = []
    for path, text in pages():
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        if "--check" in sys.argv:
            stale.append(path.name)
        else:
            path.write_text(text, encoding="utf-8")
    if stale:
        sys.exit(f"Out of date: {', '.join(stale)}. Run `make docs`.")


def pages() -> Iterator[tuple[Path, str]]:
    schema = Settings.model_json_schema()
    yield REFERENCE / "config.schema.json", json.dumps(in_both_spellings(schema), indent=2) + "\n"
    yield REFERENCE / "config.md", config_page(schema)
    yield REFERENCE / "engines.md", engines_page()


def in_both_spellings(schema: dict[str, Any], where: str = "") -> dict[str, Any]:
    """The schema that takes every setting in camelCase and in snake_case, as the loader does.

    The other spelling is a pattern that only it matches: editors check what is written against patterns, and offer the names
    of properties alone, so that each setting is offered once.
    """
    definitions = {name: in_both_spellings(part, f"$defs/{name}/") for name, part in schema.get("$defs", {}).items()}
    properties = schema.get("properties", {})
    patterns = {
        f"^{other}$": {"$ref": f"#/{where}properties/{name}"}
        for name in properties
        for other in sorted(list_spellings(name) - {*properties})
    }
    added = {"patternProperties": schema.get("patternProperties", {}) | patterns} if patterns else {}
    return schema | ({"$defs": definitions} if definitions else {}) | added


def config_page(schema: dict[str, Any]) -> str:
    aliases = "\n".join(f"| `{variable}` | `{setting}` |" for variable, setting in ENVIRONMENT_ALIASES.items())
    table = Table(schema)
    shared = {"": SharedSettings.model_fields, MODEL: SharedModelSettings.model_fields}
    own = table.rows(schema, wanted=lambda prefix, name: name not in shared.get(prefix, ()))
    of_models = table.rows(
        schema["$defs"]["ModelSettings"], MODEL, wanted=lambda prefix, name: name in shared.get(prefix, (name,))
    )
    of_servers = table.rows(schema, wanted=lambda prefix, name: name in shared.get(prefix, (name,)))
    return f"""# Settings

Generated from `src/eardrum/config/`. A YAML file (`--config FILE`, or `{ENVIRONMENT_PREFIX}CONFIG`) is overridden by the
environment, that by `--set a.b=c`. In the environment a setting `a.b` is `{ENVIRONMENT_PREFIX}A__B`; lists and maps are JSON.
Editors check the file against `config.schema.json`, and `eardrum check FILE` says what it amounts to.

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

- `--config` may be given several times, and `--config-dir` (`{ENVIRONMENT_PREFIX}CONFIG_DIR`)
  takes all `*.yaml` and `*.yml` of a folder.
  Maps are joined, lists follow one another, and nothing may be set to two values.
- In a file a name that is no setting is ignored with a warning, as llama-swap does it without one; names that begin with `x-`
  are yours. In the environment and after `--set` it is an error, and in a file, too, where it may be meant to protect the
  server: it is nearly called `apiKeys`, `hosts`, `limits`, `origins` or `tls_...`, speaks of keys or certificates, or
  stands below `limits` or `wyoming`.
- Every name may be written in camelCase and in snake_case: `apiKeys` is `api_keys`, `upload_bytes` is `uploadBytes`.
- A time is a number of seconds, or says its unit: `10m`, `1h30m`, `500ms`, `2 days`. A size is a number of bytes, or says its
  unit: `50M`, `2.1GB` (powers of 1000), `22GiB` (of 1024). That holds in files, in the environment and after `--set`.
- After `--set` a name with dots in it stands in quotes: `--set 'models."tiny.en".ttl=10m'`.
- `yes`, `no`, `on` and `off` are words, except where true or false is asked for. A number in quotes is a text.

| setting | type | default | meaning |
| --- | --- | --- | --- |
{chr(10).join(own)}

## Shared with llama-swap

A `config.yaml` of llama-swap is one of Eardrum's: [llama-swap.md](../guides/llama-swap.md) says what macros, ports,
groups and the matrix do. All of these can be used without llama-swap, too, and those of models apply to models of Eardrum's
own where that makes sense.

| setting | type | default | meaning |
| --- | --- | --- | --- |
{chr(10).join([*of_models, *of_servers])}

## Names other servers use

These variables mean the same settings here; `{ENVIRONMENT_PREFIX}...` wins over them.

| variable | setting |
| --- | --- |
{aliases}
"""


MODEL = "models.NAME."
Wanted = Callable[[str, str], bool]


class Table:
    """The rows of settings. What several settings hold alike is listed at the first."""

    def __init__(self, schema: dict[str, Any]):
        self._definitions = schema["$defs"]
        self._listed: dict[str, str] = {}

    def rows(self, node: dict[str, Any], prefix: str = "", *, wanted: Wanted) -> list[str]:
        found = []
        for name, field in node["properties"].items():
            if wanted(prefix, name):
                found += self._field(f"{prefix}{name}", field, wanted, required=name in node.get("required", ()))
        return found

    def _field(self, path: str, field: dict[str, Any], wanted: Wanted, *, required: bool) -> list[str]:
        values = field.get("additionalProperties")
        inner, each = self._section(field), self._section(values) if isinstance(values, dict) else ""
        below = inner or each
        if not below or WITHOUT_EFFECT in field:
            return [
                row(path, kind(field), "required" if required else f"`{json.dumps(field.get('default'))}`", field["description"])
            ]
        if below in self._listed:
            return [row(path, "map", "`{}`", f"{field['description']} See `{self._listed[below]}`.")]
        self._listed[below] = path
        head = [row(path, "map", "`{}`", field["description"])] if each else []
        return head + self.rows(self._definitions[below], f"{path}.NAME." if each else f"{path}.", wanted=wanted)

    def _section(self, field: dict[str, Any]) -> str:
        """The name of the definition that a value follows; empty if it has no names of its own."""
        options = [field, *field.get("anyOf", ())]
        return next((option["$ref"].removeprefix("#/$defs/") for option in options if "$ref" in option), "")


def row(path: str, kind: str, default: str, meaning: str) -> str:
    """A row; a bar inside it would be taken for the end of a cell."""
    return " | ".join(["", f"`{path}`", *(cell.replace("|", "\\|") for cell in (kind, default, meaning)), ""]).strip()


def kind(field: dict[str, Any]) -> str:
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    if pattern := next((option["pattern"] for option in field.get("anyOf", ()) if "pattern" in option), ""):
        return "time" if pattern == TIME.pattern else "size"
    if "anyOf" in field:
        return next(kind(option) for option in field["anyOf"] if option.get("type") != "null")
    if "$ref" in field:
        return "map"
    return {"array": "list", "object": "map"}.get(field["type"], field.get("format") or field["type"])


def engines_page() -> str:
    cards = registry.cards().values()
    rows = "\n".join(ability_row(card) for card in cards)
    return f"""# Engines

Generated from the cards of `src/eardrum/engines/`. `eardrum engines` shows the same for your machine, `eardrum pull NAME`
fetches a model.

| engine | languages | {" | ".join(ABILITIES)} | window | batch |
| --- | --- | {"--- | " * len(ABILITIES)}--- | --- |
{rows}

{chr(10).join(engine_section(card) for card in cards)}"""


def ability_row(card: registry.Card) -> str:
    can = card.capabilities.to_json()
    marks = " | ".join("yes" if can[name] else "no" for name in ABILITIES)
    languages = ", ".join(can["languages"]) or "many"
    return f"| [{card.name}](#{card.name}) | {languages} | {marks} | {can['max_window_s']:g} s | {can['max_batch']} |"


def engine_section(card: registry.Card) -> str:
    """What one engine runs, under which names, and what it takes to have it."""
    lines = [f"## {card.name}", "", f"{card.title}.", ""]
    if card.extra:
        lines.append(f"- Installed with `{card.install}`.")
    elif card.remote:
        lines.append("- Installed; the weights are behind an address in its options.")
    else:
        lines.append("- Installed with the package.")
    if card.layouts:
        lines.append(f"- Recognises {' or '.join(code(layout) for layout in card.layouts)}{of_types(card)}.")
    lines.append(f"- Options: {code(dict.fromkeys([*COMMON_OPTIONS, *card.options]))}.")
    if card.repositories:
        lines.append(f"- Takes every model called {code(card.repositories)}.")
    for pattern, changes in card.variants.items():
        lines.append(f"- Models called `{pattern}` differ: {', '.join(difference(*change) for change in changes.items())}.")
    if card.names:
        lines += ["", "| names | model |", "| --- | --- |", *name_rows(card)]
    return "\n".join([*lines, ""])


def of_types(card: registry.Card) -> str:
    return f", with a `model_type` of {code(card.model_types)}" if card.model_types else ""


def difference(ability: str, value: Any) -> str:
    if isinstance(value, bool):
        return ability if value else f"no {ability}"
    return f"{ability} {', '.join(map(str, value)) if isinstance(value, tuple) else value}"


def name_rows(card: registry.Card) -> Iterator[str]:
    by_model: dict[str, list[str]] = {}
    for name, repository in card.names.items():
        by_model.setdefault(repository, []).append(name)
    return (f"| {code(names)} | `{repository}` |" for repository, names in by_model.items())


def code(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


ABILITIES = ("translate", "words", "logprobs", "prompt", "hotwords", "temperature", "speakers")


if __name__ == "__main__":
    main()
