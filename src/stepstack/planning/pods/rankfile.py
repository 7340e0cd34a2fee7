"""Rank file: the order of a run's machines, read by `stepstack launch --placement FILE`.

It has one machine a line, and `#` begins a comment. Machines of one TP group are consecutive in the order of its
shards, then the groups of one DP set, then the next pipeline stage, so that collectives that follow ranks meet
neighbours of the ring.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stepstack.config import ConfigError

if TYPE_CHECKING:
    from stepstack.planning.pods.placement import Deployment, JobPlacement


def lines(deployment: Deployment, placement: JobPlacement, hosts: Sequence[str]) -> Iterator[str]:
    """Lines of a rank file. ``hosts``: names ToR by ToR, as ``Deployment`` counts them."""
    stages, groups, size = placement.nodes_SDM.shape
    yield f"# pp {stages} x dp {groups} x {size} machines a TP group, placed by {placement.method}"
    for stage in range(stages):
        for group in range(groups):
            for shard, node in enumerate(placement.nodes_SDM[stage, group].tolist()):
                host = deployment.host(node)
                where = f"ToR {host // deployment.per_tor}, ring position {node}"
                yield f"{hosts[host]}  # pp {stage}, dp {group}, tp machine {shard}; {where}"


def read(file: Path) -> list[str]:
    """Names of machines, by rank. ConfigError, which names the line, for a file that is no rank file."""
    if not file.is_file():
        raise ConfigError(f"{file} does not exist: `stepstack plan pods --out FILE` writes a rank file")
    names: list[str] = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        words = line.partition("#")[0].split()
        if len(words) > 1:
            raise ConfigError(f"{file}:{number}: {' '.join(words)!r} is more than one name: give one machine a line")
        if words and words[0] in names:
            raise ConfigError(f"{file}:{number}: {words[0]} has rank {names.index(words[0])} already: remove one line")
        names += words
    if not names:
        raise ConfigError(f"{file} names no machine: give one a line, in the order of ranks")
    return names


def rank(names: Sequence[str], host: str, file: Path) -> int:
    """Rank of a machine. A full name matches its short form and the other way round. ConfigError where it has no
    rank."""
    ranks = [i for i, name in enumerate(names) if name == host]
    ranks = ranks or [i for i, name in enumerate(names) if name.partition(".")[0] == host.partition(".")[0]]
    if len(ranks) == 1:
        return ranks[0]
    problem = "is not in it" if not ranks else f"matches {' and '.join(names[i] for i in ranks)}"
    raise ConfigError(f"{file}: this machine, {host!r}, {problem}: give --host NAME as the file has it")
