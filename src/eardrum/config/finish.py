"""What a config means once it is read as a whole."""

from __future__ import annotations

from eardrum.config.places import Places, Remark
from eardrum.config.settings import Settings


def finished(settings: Settings, places: Places) -> tuple[Settings, list[Remark]]:
    """The settings with everything worked out."""
    return settings, []
