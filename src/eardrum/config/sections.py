"""What parts of the settings have in common."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

WITHOUT_EFFECT = "x-without-effect"
"""Marks in the schema what is accepted for the sake of others' configs, with the reason why nothing comes of it."""


class Section(BaseModel):
    """A part of the settings. Unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    shorthand: ClassVar[str] = ""
    """The one of its settings that a word in the section's own place sets."""

    @model_validator(mode="before")
    @classmethod
    def _spelled_out(cls, data: Any) -> Any:
        return {cls.shorthand: data} if cls.shorthand and isinstance(data, str) else data


def without_effect(default: Any, *, why: str, description: str, **bounds: Any) -> Any:
    """A setting that is accepted, checked, and changes nothing; whoever sets it is told why."""
    return Field(default, description=f"{description} Without effect: {why}", json_schema_extra={WITHOUT_EFFECT: why}, **bounds)
