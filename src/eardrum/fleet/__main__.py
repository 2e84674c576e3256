"""Runs replicas on a Ray cluster for the gateway: `python -m eardrum.fleet --address HOST:PORT`.

It is a process of its own because Ray ends every program that is joined to it 60 s after the head of the cluster is lost. It
reads lines of JSON from stdin:

    {"wanted": {MODEL: {count, entry, python, token, resources, labels}}}    have these replicas from now on
    {"stop": true}                                                           end all replicas, then this process

and writes lines of JSON to stdout:

    {"replica": NAME, model, state, address, node, why, incarnation}     a replica was found, or has changed
    {"joined": true}             the cluster is joined, and all replicas from before have been told
    {"alive": true}              nothing hangs; every second
    {"failed": {"message"}}      the cluster cannot be joined

`state` is starting, ready, draining, failed (the model could not be loaded, and is tried again) or gone. When stdin closes
without `stop`, as after a kill of the gateway, the replicas are left: they end with their lease, unless another process finds
them first.
With `--nodes` it writes `{"nodes": [...]}` and ends.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path

from eardrum.fleet.placement import list_nodes
from eardrum.process_messages import reserve_stdout, write_message

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing of Eardrum sends reports; Ray reads this when it is imported
if Path("~/.ray/auth_token").expanduser().exists():
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # as `eardrum cluster` starts clusters

ADJUST_S = 1.0
END_S = 8.0
"""Longest wait for the end of all replicas."""

MAX_LINE_BYTES = 16 << 20


def main() -> None:
    """Join the cluster, and run replicas until stdin closes."""
    arguments = _parse_arguments()
    reserve_stdout()
    import ray
    from ray.exceptions import RayError

    try:
        ray.init(
            address=arguments.address,
            namespace=arguments.namespace,
            log_to_driver=False,
            configure_logging=False,
        )
    except (RayError, ConnectionError, RuntimeError, ValueError, OSError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        write_message({"failed": {"message": f"{lines[0].rstrip('.')}."}})
        sys.exit(1)
    if arguments.nodes:
        write_message({"nodes": list_nodes(ray.nodes())})
    else:
        asyncio.run(run_fleet(arguments.namespace, arguments.lease))
    ray.shutdown()


async def run_fleet(namespace: str, lease_s: float) -> None:
    """Run replicas as stdin says, until it closes. An unexpected error ends this process: the next one finds the replicas."""
    from eardrum.fleet.replica_fleet import ReplicaFleet, WantedModel

    reader = asyncio.StreamReader(limit=MAX_LINE_BYTES)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    fleet = ReplicaFleet(namespace, lease_s, write_message)
    fleet.find_replicas()

    async def adjust() -> None:
        while True:
            fleet.adjust()
            write_message({"alive": True})
            await asyncio.sleep(ADJUST_S)

    async def read() -> None:
        while line := await reader.readline():
            message = json.loads(line)
            if "stop" in message:
                await fleet.end_all(END_S)
                return
            fleet.set_wanted({model: WantedModel.parse(model, data) for model, data in message["wanted"].items()})

    tasks = [asyncio.create_task(adjust()), asyncio.create_task(read())]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="eardrum.fleet", description=__doc__)
    parser.add_argument("--address", required=True, help="HOST:PORT of the cluster's head")
    parser.add_argument("--namespace", default="eardrum")
    parser.add_argument("--lease", type=float, default=120.0, help="seconds without a question after which replicas end")
    parser.add_argument("--nodes", action="store_true", help="write the nodes of the cluster, and end")
    return parser.parse_args()


if __name__ == "__main__":
    main()
