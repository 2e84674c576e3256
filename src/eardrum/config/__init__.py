"""The settings and how they are loaded."""

from eardrum.config.diagnostics import ConfigDiagnostic, LocationMap, SourceLocation
from eardrum.config.environment import (
    CLIENT_CERTIFICATE_VARIABLE,
    CLIENT_KEY_VARIABLE,
    CLIENT_SERVER_VARIABLE,
    CONFIG_VARIABLE,
    ENVIRONMENT_ALIASES,
    FOLDER_VARIABLE,
    TELEGRAM_ALLOW_VARIABLE,
    TELEGRAM_API_VARIABLE,
    TELEGRAM_TOKEN_VARIABLE,
)
from eardrum.config.loading import LoadedConfig, examine_config, load_config, load_settings
from eardrum.config.macros import PortReservations
from eardrum.config.settings import (
    ENVIRONMENT_PREFIX,
    LimitSettings,
    LiveSettings,
    LogSettings,
    ModelSettings,
    RaySettings,
    ReplicaSettings,
    SchedulingSettings,
    Settings,
)

__all__ = [
    "CLIENT_CERTIFICATE_VARIABLE",
    "CLIENT_KEY_VARIABLE",
    "CLIENT_SERVER_VARIABLE",
    "CONFIG_VARIABLE",
    "ENVIRONMENT_ALIASES",
    "ENVIRONMENT_PREFIX",
    "FOLDER_VARIABLE",
    "TELEGRAM_ALLOW_VARIABLE",
    "TELEGRAM_API_VARIABLE",
    "TELEGRAM_TOKEN_VARIABLE",
    "ConfigDiagnostic",
    "LimitSettings",
    "LiveSettings",
    "LoadedConfig",
    "LocationMap",
    "LogSettings",
    "ModelSettings",
    "PortReservations",
    "RaySettings",
    "ReplicaSettings",
    "SchedulingSettings",
    "Settings",
    "SourceLocation",
    "examine_config",
    "load_config",
    "load_settings",
]
