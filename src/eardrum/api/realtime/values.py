"""Reads what clients send as JSON. Errors name the value by its path, as `session.audio.input.format`."""

from __future__ import annotations

from typing import Any

from eardrum.errors import InvalidRequestError


class Part:
    """An object in a client's event. What is null counts as given: it means "off" or "unset"."""

    def __init__(self, value: object, path: str):
        if not isinstance(value, dict):
            raise InvalidRequestError(f"{path} must be an object, not {shown(value)}.", param=path)
        self._values: dict[str, Any] = value
        self._path = path

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def path(self, name: str) -> str:
        """What errors call the value."""
        return f"{self._path}.{name}"

    def raw(self, name: str) -> Any:
        """The value, whatever it is; None if there is none."""
        return self._values.get(name)

    def part(self, name: str) -> Part | None:
        """The object of this name; None if it is null or missing.

        Raises:
            InvalidRequestError: it is no object.
        """
        return Part(value, self.path(name)) if (value := self.raw(name)) is not None else None

    def text(self, name: str) -> str:
        """The text without space around it; empty if it is null or missing.

        Raises:
            InvalidRequestError: it is no text.
        """
        value = self.raw(name)
        if value is not None and not isinstance(value, str):
            raise self.wrong(name, "a string")
        return (value or "").strip()

    def texts(self, name: str) -> tuple[str, ...]:
        """The list of texts; empty if it is null or missing.

        Raises:
            InvalidRequestError: it is no such list.
        """
        value = self.raw(name)
        if value is not None and not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
            raise self.wrong(name, "a list of strings")
        return tuple(value or ())

    def choice(self, name: str, choices: tuple[str, ...], otherwise: str) -> str:
        """One of the words; `otherwise` if it is null or missing.

        Raises:
            InvalidRequestError: it is none of them.
        """
        value = self.raw(name)
        if value is None:
            return otherwise
        if value not in choices:
            raise self.wrong(name, " or ".join(choices))
        return str(value)

    def number(self, name: str, least: float, most: float, otherwise: float) -> float:
        """The number; `otherwise` if it is null or missing.

        Raises:
            InvalidRequestError: it is no number, or outside of these bounds.
        """
        value = self.raw(name)
        if value is None:
            return otherwise
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise self.wrong(name, f"a number from {least:g} to {most:g}")
        return value

    def wrong(self, name: str, wanted: str) -> InvalidRequestError:
        """The error for a value that is not what it should be."""
        path = self.path(name)
        return InvalidRequestError(f"{path} must be {wanted}, not {shown(self.raw(name))}.", param=path)


def shown(value: object) -> str:
    """A client's value in a message, however long it is."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
