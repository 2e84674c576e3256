"""Every setting, and where it comes from."""

from eardrum.config.load import CONFIG_VARIABLE, ENVIRONMENT_ALIASES, load
from eardrum.config.settings import PREFIX, Limits, Log, Model, Settings

__all__ = ["CONFIG_VARIABLE", "ENVIRONMENT_ALIASES", "PREFIX", "Limits", "Log", "Model", "Settings", "load"]
