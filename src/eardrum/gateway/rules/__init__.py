"""Who must go when a model is to be loaded: groups, a matrix of sets, or pools of memory. Pure, and blind to the config."""

from eardrum.gateway.rules.base import CLAIMED, LEAVING, Every, Loaded, Nothing, Rules, blamed
from eardrum.gateway.rules.groups import Group, Groups
from eardrum.gateway.rules.matrix import Matrix
from eardrum.gateway.rules.pools import Need, Pools

__all__ = [
    "CLAIMED",
    "LEAVING",
    "Every",
    "Group",
    "Groups",
    "Loaded",
    "Matrix",
    "Need",
    "Nothing",
    "Pools",
    "Rules",
    "blamed",
]
