"""Which rules are in force, groups or a matrix, whichever way the config writes them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from eardrum.config import matrix
from eardrum.config.llama_swap import Group, Matrix
from eardrum.config.names import Names
from eardrum.config.places import Errors, KeyPath
from eardrum.config.settings import Settings

NEWER: KeyPath = ("routing", "router", "settings")


def with_rules(settings: Settings, names: Names, errors: Errors) -> Settings:
    """The settings with the rules in force as `groups` and `matrix`, one of which is empty.

    It is an error to have rules of both kinds, rules written both ways, or a member or word that is no model.
    """
    groups, chosen, path = _in_force(settings, errors)
    if chosen and not _holds(chosen, settings, path, errors):
        chosen = None
    _check_groups(groups, names, path, settings, errors)
    return settings.model_copy(update={"groups": groups, "matrix": chosen})


def _in_force(settings: Settings, errors: Errors) -> tuple[dict[str, Group], Matrix | None, KeyPath]:
    router = settings.routing.router if settings.routing else None
    older = "groups" if settings.groups else "matrix"
    if settings.groups and settings.matrix:
        errors.add(("matrix",), "There are both `groups` and a `matrix`, and only one can decide: remove one of them.")
        return {}, None, NEWER
    if settings.groups or settings.matrix:
        if router and (router.model_fields_set & {"use"} or router.settings.groups or router.settings.matrix):
            advice = f"move `{older}` below routing.router.settings, or remove routing.router"
            errors.add((older,), f"There is both `{older}` and routing.router: {advice}.")
        return settings.groups, settings.matrix, (older,)
    if router and router.use == "matrix":
        if not router.settings.matrix:
            errors.add(("routing", "router", "use"), "routing.router.use is matrix, but routing.router.settings has none.")
        return {}, router.settings.matrix, (*NEWER, "matrix")
    return (dict(router.settings.groups) if router else {}), None, (*NEWER, "groups")


def _check_groups(groups: Mapping[str, Group], names: Names, path: KeyPath, settings: Settings, errors: Errors) -> None:
    of: dict[str, str] = {}
    for id, group in groups.items():
        for position, member in enumerate(group.members):
            where = (*path, id, "members", position)
            if member in of:
                again = "twice in the group" if of[member] == id else f"in the group {of[member]} and in"
                errors.add(where, f"The model {member} is {again} {id}: a model is in one group.")
            elif member not in settings.models:
                names.is_unknown(member, where)
            of[member] = id


def _holds(chosen: Matrix, settings: Settings, path: KeyPath, errors: Errors) -> bool:
    """Whether a matrix can be read."""
    wrong = list(matrix.problems(chosen, settings.models))
    for error in wrong if not errors.incomplete else ():
        errors.add((*path, *error.path), error.message)
    return not wrong


def check_spillover(id: str, targets: Collection[str], settings: Settings, errors: Errors) -> None:
    """Refuse a selector whose targets push each other out: it would load one for each request."""
    if len(targets) <= 1:
        return
    where: KeyPath = ("selectors", id, "targets")
    if settings.matrix:
        sets = matrix.parse(settings.matrix, settings.models).values()
        if not any(matrix.holds(expression, targets) for expression in sets):
            errors.add(where, f"No set of the matrix holds all targets of {id}, so they cannot spill over to each other.")
        return
    of = {member: name for name, group in settings.groups.items() for member in group.members}
    shared = {of.get(target, "") for target in targets}
    if len(shared) > 1 or shared == {""} or settings.groups[shared.pop()].swap:
        wish = "put them into one group with `swap: false`"
        errors.add(where, f"The targets of {id} push each other out, so they cannot spill over to each other: {wish}.")


def may_meet(one: str, other: str, settings: Settings) -> bool:
    """Whether groups or matrix let both be loaded at a time.

    Rules bind those they name, and commands that they do not: these share llama-swap's default group, or with a matrix run
    alone. With pools of `memory` it is these that decide about who is in no group.
    """
    if settings.matrix:
        sets = matrix.parse(settings.matrix, settings.models)
        named = {model for expression in sets.values() for model in matrix.models_of(expression)}
        bound = all(id in named or (settings.models[id].cmd and not settings.memory) for id in (one, other))
        return not bound or any(matrix.holds(expression, (one, other)) for expression in sets.values())
    of = {member: group for group in settings.groups.values() for member in group.members}
    if not settings.memory:
        of = {id: DEFAULT for id, model in settings.models.items() if model.cmd} | of
    first, second = of.get(one), of.get(other)
    if not first or not second:
        return True
    if first is second:
        return not first.swap
    return not ((first.exclusive and not second.persistent) and (second.exclusive and not first.persistent))


DEFAULT = Group()
"""The group of commands that are in none."""
