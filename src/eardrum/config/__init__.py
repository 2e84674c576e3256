"""Every setting, and where it comes from."""

from eardrum.config.environment import (
    CLIENT_CERTIFICATE_VARIABLE,
    CLIENT_KEY_VARIABLE,
    CLIENT_SERVER_VARIABLE,
    CONFIG_VARIABLE,
    ENVIRONMENT_ALIASES,
    FOLDER_VARIABLE,
)
from eardrum.config.load import Loaded, examine, load, read
from eardrum.config.places import Place, Places, Remark
from eardrum.config.ports import Ports
from eardrum.config.settings import PREFIX, Limits, Live, Log, Model, Settings

__all__ = [
    "CLIENT_CERTIFICATE_VARIABLE",
    "CLIENT_KEY_VARIABLE",
    "CLIENT_SERVER_VARIABLE",
    "CONFIG_VARIABLE",
    "ENVIRONMENT_ALIASES",
    "FOLDER_VARIABLE",
    "PREFIX",
    "Limits",
    "Live",
    "Loaded",
    "Log",
    "Model",
    "Place",
    "Places",
    "Ports",
    "Remark",
    "Settings",
    "examine",
    "load",
    "read",
]
