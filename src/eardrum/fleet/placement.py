"""Lists the nodes of the cluster, and explains why none can run a replica: Ray does not report requests that no node can meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eardrum.units import format_size

RESOURCE_NAMES = {"num_cpus": ("CPU", "CPUs"), "num_gpus": ("GPU", "GPUs"), "memory": ("memory", "memory")}
"""Options of an actor: Ray's name of the resource, and the word for people."""

OPERATORS = ("!", "in(", "!in(")
"""Beginnings of label values that mean more than the value itself; Ray alone can tell whether a node has them."""


def list_nodes(nodes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Describe the nodes of the cluster that live: id, address, resources and labels."""
    return [
        {
            "id": node["NodeID"],
            "address": node["NodeManagerAddress"],
            "name": node["NodeManagerHostname"],
            "resources": {name: amount for name, amount in node["Resources"].items() if not name.startswith("node:")},
            "labels": {name: value for name, value in node["Labels"].items() if not name.startswith("ray.io/")},
        }
        for node in nodes
        if node["Alive"]
    ]


def list_needs(options: Mapping[str, Any]) -> dict[str, float]:
    """List the resources that an actor with these options takes, by Ray's names."""
    needs = {ray_name: options.get(option) or 0.0 for option, (ray_name, _) in RESOURCE_NAMES.items()}
    return {name: amount for name, amount in (needs | dict(options.get("resources") or {})).items() if amount}


def explain_placement(nodes: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> str:
    """Explain, as a clause, why an actor with these options waits.

    `nodes` are those of `ray.nodes()`: "Alive", "Resources" (all, whether in use or not) and "Labels".
    """
    alive = [node for node in nodes if node["Alive"]]
    if not alive:
        return "the cluster has no node"
    fitting = alive
    for label, value in (options.get("label_selector") or {}).items():
        if value.startswith(OPERATORS):
            continue
        fitting = [node for node in fitting if node["Labels"].get(label) == value]
        if not fitting:
            known = sorted({node["Labels"][label] for node in alive if label in node["Labels"]})
            return f"no node has the label {label}={value} ({_describe_known(label, known)})"
    for name, amount in list_needs(options).items():
        most = max(node["Resources"].get(name, 0.0) for node in fitting)
        if most < amount:
            where = "no node" if len(fitting) == len(alive) else "no node with these labels"
            return f"{where} has {_format_amount(name, amount)} (the most is {_format_amount(name, most)})"
    needs = " and ".join(_format_amount(name, amount) for name, amount in list_needs(options).items())
    return f"it waits until a node has {needs} free" if needs else "it waits for a node"


def _describe_known(label: str, known: Sequence[str]) -> str:
    return f"there is {', '.join(known[:5])}" if known else f"none has a label {label}"


def _format_amount(name: str, amount: float) -> str:
    if name == "memory":
        return f"{format_size(int(amount))} of memory"
    words = dict(RESOURCE_NAMES.values())
    return f"{amount:g} {words.get(name, name) if amount != 1 else name}"
