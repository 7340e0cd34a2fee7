"""`stepstack plan pods`: a job on the rings of a cluster, its rank file, and what a fault changes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepstack.config import ConfigError

if TYPE_CHECKING:
    from stepstack.planning.pods.orchestrator import Change, Orchestrator
    from stepstack.planning.pods.placement import Deployment

HELP = "which nodes form a ring of GPUs, where a job goes, what a fault changes (InfinitePOD)"
STATES = ("loopback", "path 1", "path 2")


def options(parser: argparse.ArgumentParser) -> None:
    cluster = parser.add_argument_group("cluster")
    cluster.add_argument("--hosts", type=Path, metavar="FILE", help="names of machines, one a line, ToR by ToR")
    cluster.add_argument("--nodes", type=int, metavar="N", help="in place of --hosts: node0 to nodeN-1")
    cluster.add_argument("--gpus", type=int, default=4, help="GPUs of a node (4)")
    cluster.add_argument("--hops", type=int, default=2, metavar="K", help="nodes that a transceiver reaches (2)")
    cluster.add_argument("--per-tor", type=int, default=8, metavar="P", help="nodes under a ToR switch (8)")
    cluster.add_argument("--faulty", default="", metavar="A,B", help="machines that are down")
    job = parser.add_argument_group("job")
    job.add_argument("--tp", type=int, required=True, help="GPUs of a TP (or sharding) group: one ring")
    job.add_argument("--dp", type=int, default=1, help="groups whose peers should share ToR switches (1)")
    job.add_argument("--pp", type=int, default=1, help="sets of DP groups (1)")
    job.add_argument("--method", default="best", help="greedy, lines, constrained, aligned, exact or best (best)")
    job.add_argument("--out", type=Path, metavar="FILE", help="rank file for `stepstack launch --placement`")
    events = parser.add_argument_group("events, on the rings of all the cluster's nodes")
    events.add_argument(
        "--event", action="append", default=[], metavar="fault:A | repair:A", help="in order, repeatable"
    )
    events.add_argument(
        "--moves", type=int, metavar="G", help="groups that an event may change at most, beside its own"
    )
    parser.add_argument("--json", action="store_true", help="rings, ranks and the path of every transceiver bundle")


def run(args: argparse.Namespace) -> int:
    from stepstack.planning.pods import rankfile
    from stepstack.planning.pods.placement import Deployment, Job, place
    from stepstack.planning.pods.ring import Ring
    from stepstack.report import jsonl

    names = _hosts(args)
    deployment = Deployment(Ring(len(names), args.gpus, args.hops), args.per_tor)
    down = [deployment.position(_number(name, names)) for name in args.faulty.split(",") if name]
    if args.event:
        changes = _events(args, deployment, names, down)
        print(json.dumps(changes, indent=1) if args.json else _events_text(changes))
        return 0
    job = Job(args.tp, args.dp, args.pp)
    placed = place(deployment, deployment.ring.mask(down), job, args.method)
    if args.out:
        jsonl.write_text_atomic(args.out, "\n".join(rankfile.lines(deployment, placed, names)) + "\n")
    machines = [names[deployment.host(node)] for node in placed.nodes_SDM.ravel().tolist()]
    if args.json:
        print(json.dumps(_as_json(deployment, placed, names, machines), indent=1))
        return 0
    print(
        f"{job.groups} groups of {args.tp} GPUs on {len(machines)} of {len(names)} nodes ({len(down)} down), by "
        f"{placed.method}: {placed.crossings} of {placed.hops} DP hops between ToRs ({placed.rate:.2%})"
    )
    print(f"rank file: {args.out}" if args.out else "machines by rank: " + " ".join(machines))
    return 0


def _hosts(args: argparse.Namespace) -> list[str]:
    from stepstack.planning.pods import rankfile

    if (args.hosts is None) == (args.nodes is None):
        raise ConfigError("say which machines there are: --hosts FILE, or --nodes N")
    if args.hosts is not None:
        return rankfile.read(args.hosts)
    return [f"node{number}" for number in range(args.nodes)]


def _number(name: str, names: Sequence[str]) -> int:
    if name not in names:
        raise ConfigError(f"no machine {name!r}: there are {names[0]} to {names[-1]}")
    return names.index(name)


def _as_json(deployment: Deployment, placed: Any, names: Sequence[str], machines: Sequence[str]) -> dict[str, Any]:
    """Ranks, and rings in ring order with the state of each machine's bundles."""
    import numpy as np

    chains = placed.nodes_SDM.reshape(-1, placed.nodes_SDM.shape[2])
    rings = []
    for chain in chains:
        order = deployment.ring.in_order(chain)
        states = deployment.ring.paths(np.array([order]))[0]
        rings.append(
            {
                "machines": [names[deployment.host(node)] for node in order.tolist()],
                "paths": [[STATES[state] for state in row] for row in states.tolist()],
            }
        )
    rate = {"crossings": placed.crossings, "hops": placed.hops, "rate": placed.rate}
    return {"method": placed.method, "cross_tor": rate, "ranks": list(machines), "rings": rings}


def _events(
    args: argparse.Namespace, deployment: Deployment, names: Sequence[str], down: Sequence[int]
) -> list[dict[str, Any]]:
    import time

    from stepstack.planning.pods.orchestrator import Orchestrator

    rings = Orchestrator(deployment.ring, args.tp, down, args.moves)
    changes = []
    for event in args.event:
        kind, _, name = event.partition(":")
        if kind not in ("fault", "repair") or not name:
            raise ConfigError(f"--event {event!r}: must be fault:MACHINE or repair:MACHINE")
        node = deployment.position(_number(name, names))
        began = time.perf_counter()
        change = rings.fault(node) if kind == "fault" else rings.repair(node)
        spent = time.perf_counter() - began
        changes.append({"event": event, **_change(change, deployment, names), **_standing(rings), "ms": 1000 * spent})
    return changes


def _change(change: Change, deployment: Deployment, names: Sequence[str]) -> dict[str, Any]:
    groups = {}
    for number, members in zip(change.groups_C.tolist(), change.members_CM.tolist(), strict=True):
        groups[number] = None if members[0] < 0 else [names[deployment.host(node)] for node in members]
    switched = {
        names[deployment.host(node)]: [STATES[state] for state in row]
        for node, row in zip(change.nodes_W.tolist(), change.states_WK.tolist(), strict=True)
    }
    return {"groups": groups, "switched": switched}


def _standing(rings: Orchestrator) -> dict[str, int]:
    return {"rings": len(rings.groups()), "spare_nodes": len(rings.spares())}


def _events_text(changes: Sequence[dict[str, Any]]) -> str:
    lines = []
    for event in changes:
        lines.append(
            f"{event['event']}: {event['rings']} rings, {event['spare_nodes']} spare nodes; "
            f"{len(event['groups'])} groups change, {len(event['switched'])} nodes switch ({event['ms']:.2f} ms)"
        )
        for number, machines in event["groups"].items():
            lines.append(f"  group {number}: " + (" ".join(machines) if machines else "dissolved"))
        lines += [f"  {name}: {', '.join(states)}" for name, states in event["switched"].items()]
    return "\n".join(lines)
