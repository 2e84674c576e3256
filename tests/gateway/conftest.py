"""Fixtures that tests of the gateway share."""

from tests.cards import cards

__all__ = ["cards"]
