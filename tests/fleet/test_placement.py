"""The reason why a replica has no place on the nodes of a cluster."""

from __future__ import annotations

from typing import Any

import pytest

from eardrum.fleet.placement import explain_placement, list_nodes


def build_node(number: int, resources: dict[str, float], labels: dict[str, str] | None = None, *, alive: bool = True) -> dict:
    return {
        "NodeID": f"{number:056x}",
        "NodeManagerAddress": f"10.0.0.{number}",
        "NodeManagerHostname": f"gpu{number}",
        "Alive": alive,
        "Resources": resources,
        "Labels": labels or {},
    }


NODES = [
    build_node(1, {"CPU": 4, "memory": 8e9}, {"gpu": "none"}),
    build_node(2, {"CPU": 16, "GPU": 2, "memory": 64e9, "fast_disk": 1}, {"gpu": "h100"}),
    build_node(3, {"CPU": 64, "GPU": 8}, {"gpu": "b200"}, alive=False),
]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"num_cpus": 1, "num_gpus": 0.5}, "it waits until a node has 1 CPU and 0.5 GPUs free"),
        ({"num_cpus": 32}, "no node has 32 CPUs (the most is 16 CPUs)"),
        ({"num_gpus": 8}, "no node has 8 GPUs (the most is 2 GPUs)"),
        ({"memory": 100e9}, "no node has 100.0 GB of memory (the most is 64.0 GB of memory)"),
        ({"resources": {"slow_disk": 1}}, "no node has 1 slow_disk (the most is 0 slow_disk)"),
        ({"resources": {"fast_disk": 1}}, "it waits until a node has 1 fast_disk free"),
        ({"label_selector": {"gpu": "b200"}}, "no node has the label gpu=b200 (there is h100, none)"),
        ({"label_selector": {"zone": "a"}}, "no node has the label zone=a (none has a label zone)"),
        ({"num_gpus": 1, "label_selector": {"gpu": "none"}}, "no node with these labels has 1 GPU (the most is 0 GPUs)"),
        ({"num_gpus": 1, "label_selector": {"gpu": "!none"}}, "it waits until a node has 1 GPU free"),
        ({"label_selector": {"gpu": "in(h100, b200)"}}, "it waits for a node"),
    ],
)
def test_why_a_replica_waits(options: dict[str, Any], why: str) -> None:
    assert explain_placement(NODES, options) == why


def test_a_cluster_without_nodes() -> None:
    assert explain_placement(NODES[2:], {"num_cpus": 1}) == "the cluster has no node"


def test_nodes_for_people() -> None:
    nodes = [build_node(1, {"CPU": 4, "node:10.0.0.1": 1}, {"ray.io/node-id": "x", "gpu": "none"}), NODES[2]]
    assert list_nodes(nodes) == [
        {
            "id": f"{1:056x}",
            "address": "10.0.0.1",
            "name": "gpu1",
            "resources": {"CPU": 4},
            "labels": {"gpu": "none"},
        }
    ]
