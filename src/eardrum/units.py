"""Parses and formats durations and sizes: `10m`, `1h30m`, `50M`, `2.1 GiB`. A plain number is seconds, or bytes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Annotated, Any

from msgspec import Struct
from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema
from pydantic_core.core_schema import no_info_before_validator_function

SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
UNIT_WORDS = {"sec": "s", "second": "s", "min": "m", "minute": "m", "hour": "h", "day": "d"}
"""Words for units; each may be a plural with `s`."""
DURATION_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([a-zµμ]+)\s*", re.ASCII | re.IGNORECASE)
NUMBER = re.compile(r"[+-]?(?:\d[\d_]*(?:\.\d*)?|\.\d+)", re.ASCII)

SIZE_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
BINARY_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[KMGT]?)(?P<binary>i?)B?", re.IGNORECASE | re.ASCII)


def parse_seconds(text: str) -> float:
    """Parse `10m`, `1h30m`, `500ms`, `2 hours` or `90` into seconds; a minus in front negates all of it.

    Raises:
        ValueError: the text is not a time.
    """
    stripped = text.strip()
    if NUMBER.fullmatch(stripped):
        return float(stripped)
    unsigned = stripped.removeprefix("-")
    parts = DURATION_PART.findall(unsigned)
    units = [_find_unit(word) for _, word in parts]
    if not parts or DURATION_PART.sub("", unsigned) or None in units:
        raise ValueError(f"{text!r} is not a time such as 90, 10m or 1h30m")
    total = sum(float(number) * SECONDS[unit] for (number, _), unit in zip(parts, units, strict=True) if unit)
    return -total if stripped.startswith("-") else total


def _find_unit(word: str) -> str | None:
    if word in SECONDS:
        return word
    lower = word.lower()
    return UNIT_WORDS.get(lower) or UNIT_WORDS.get(lower.removesuffix("s"))


def parse_size(size: str) -> int:
    """Parse `2.1G`, `500M`, `22GiB` or `4096` into bytes: G is 10⁹ and Gi 2³⁰; a B at the end is ignored.

    Raises:
        ValueError: the text is not a size above 0.
    """
    found = SIZE.fullmatch(size.strip())
    if not found or (found["binary"] and not found["unit"]):
        raise ValueError(f"{size!r} is not a size such as 2.1G, 500M or 22GiB.")
    unit = (BINARY_UNITS if found["binary"] else SIZE_UNITS)[found["unit"].upper()]
    if (number := round(float(found["number"]) * unit)) <= 0:
        raise ValueError(f"{size!r} is not a size above 0.")
    return number


def format_size(bytes: float) -> str:
    """Format a number of bytes: `2.1 GB`, `500 MB`."""
    return f"{bytes / 1e9:.1f} GB" if bytes >= 1e9 else f"{bytes / 1e6:.0f} MB"


class UnitMarker(Struct, frozen=True):
    """Marks a setting that is a number or a text with a unit, which `read` turns into the number."""

    read: Callable[[str], float]
    noun: str
    example: str
    """For messages, with `noun`: `a time such as 10m`."""
    pattern: str
    """Regular expression of such texts, for the schema."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Parse a text before the number is validated."""
        return no_info_before_validator_function(self._parse_number, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Describe a number or a text with a unit."""
        number = handler(schema)
        return {"anyOf": [*number.get("anyOf", [number]), {"type": "string", "pattern": self.pattern}]}

    def _parse_number(self, value: Any) -> Any:
        return self.read(value) if isinstance(value, str) else value


TIME = UnitMarker(parse_seconds, "a time", "10m", r"^\s*-?[0-9.].*$")
SIZE_IN_BYTES = UnitMarker(parse_size, "a size", "50M", r"^\s*[0-9.]+\s*([KMGTkmgt]i?)?[Bb]?\s*$")
MEGABYTES = UnitMarker(lambda text: parse_size(text) / 1e6, "a size", "50M", SIZE_IN_BYTES.pattern)

Seconds = Annotated[float, TIME]
"""A time; a number is seconds."""
OptionalSeconds = Annotated[float | None, TIME]
OptionalByteSize = Annotated[int | None, SIZE_IN_BYTES]
ByteSize = Annotated[int, SIZE_IN_BYTES]
"""A size; a number is bytes."""


def count_usable_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
