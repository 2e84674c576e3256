"""A live session as the edges see it: it holds its model, and outlives the model's process."""

from eardrum.gateway.live.opening import live, named
from eardrum.gateway.live.session import Session

__all__ = ["Session", "live", "named"]
