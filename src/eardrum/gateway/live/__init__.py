"""Live sessions for the APIs: a session holds its model, and continues when the model's process dies."""

from eardrum.gateway.live.session import ResumableSession, find_live_model, open_session, prepare_settings

__all__ = ["ResumableSession", "find_live_model", "open_session", "prepare_settings"]
