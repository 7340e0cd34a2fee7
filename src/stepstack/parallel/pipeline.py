"""Pipeline parallelism by a plan for each batch: its ranks, its replicas, and what all of them must agree on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stepstack.config import ConfigError
from stepstack.models.chunks import PolicyCut
from stepstack.parallel.channels import Pair, Transfer
from stepstack.parallel.pace import PassPace
from stepstack.parallel.passes import Loss, LossSums, RankPasses
from stepstack.planning.pipeline.graph import PipelinePlan

TIMEOUT = 600.0  # seconds that a rank waits for another


class PipelineError(RuntimeError):
    """A batch that a rank could not carry out: the same sentence on every rank, naming the rank and its error."""


@dataclass(frozen=True)
class BatchSums:
    """Sums over all microbatches and replicas, of "loss" and of the loss's metrics; those whose names end in _max are
    maxima. ``count`` and ``work`` as in ``core.types.LossOut``."""

    sums: Mapping[str, float] = field(default_factory=dict)
    count: float = 0.0
    work: float = 0.0


def place(process: int, replicas: int) -> tuple[int, int]:
    """(rank in its pipeline, number of its replica) of a process. Replicas of the same chunks are neighbours, because
    their gradients are more than what goes through a pipeline."""
    return process // replicas, process % replicas


class Pipeline:
    """A policy's chunks over the ranks of a pipeline, ``replicas`` times. Every process of the world makes one,
    together, with the ``cut`` of the rank that ``place`` gives it.

    A rank waits ``timeout`` seconds for another. ConfigError where the processes are not ranks times replicas.
    """

    def __init__(
        self,
        cut: PolicyCut,
        replicas: int = 1,
        timeout: float = TIMEOUT,
        device: torch.device | str = "cpu",
    ):
        self.cut, self.replicas, self.device = cut, replicas, torch.device(device)
        self.ranks = 1 + max(chunk.rank for chunk in cut.chunks)
        self.processes = self.ranks * replicas
        world = dist.get_world_size() if dist.is_initialized() else 1
        if world != self.processes:
            raise ConfigError(
                f"{self.ranks} ranks of a pipeline, {replicas} times, are {self.processes} processes, and {world} run: "
                "start as many, or change pipeline.ranks"
            )
        self.process = dist.get_rank() if self.processes > 1 else 0
        self.rank, self.replica = place(self.process, replicas)
        if self.rank != cut.rank:
            raise ConfigError(f"process {self.process} is rank {self.rank} of its pipeline and has rank {cut.rank}'s")
        self.parameters = [p for p in cut.policy.parameters() if p.requires_grad]
        self.wire = Wires({}, self.processes_of(self.replica))
        if self.processes > 1:
            self._connect(timedelta(seconds=timeout))

    def processes_of(self, replica: int) -> list[int]:
        """Processes of a replica, by rank."""
        return [rank * self.replicas + replica for rank in range(self.ranks)]

    def _connect(self, timeout: timedelta) -> None:
        """Make all process groups; every process makes all, in the same order. Each directed pair of ranks has its own:
        libraries match the messages of a group by their order alone."""
        # At the end of a batch they wait for ranks that have waited themselves.
        self.everyone = dist.new_group(backend="gloo", timeout=2 * timeout)
        for replica in range(self.replicas):
            members = self.processes_of(replica)
            peers = dist.new_group(members, backend="gloo", timeout=timeout)
            pairs = {
                (a, b): dist.new_group(sorted((members[a], members[b])), timeout=timeout)
                for a, b in sorted(_pairs(self.cut))
            }
            ends = sorted(members[rank] for rank in self.cut.tied or ())
            tied = dist.new_group(ends, timeout=timeout) if ends else None
            if replica == self.replica:
                self.peers, self.tied_group, self.wire = peers, tied, Wires(pairs, members)
        for rank in range(self.ranks):
            same = [rank * self.replicas + replica for replica in range(self.replicas)]
            group = dist.new_group(same, timeout=timeout)
            if rank == self.rank:
                self.same = group
        self.wire.greet(self.rank, self.device)

    def step(
        self,
        plan: PipelinePlan,
        micros: Sequence[Any],
        loss: Loss,
        weight: float,
        *,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
        pace: PassPace | None = None,
    ) -> BatchSums:
        """Carry out a plan for the microbatches of this replica, ``batching.collate.TokenMicroBatch``, which every rank
        has whole. ``loss(module, micro)`` returns sums, such as ``loops.supervised.likelihood``; their total times
        ``weight`` is differentiated, and gradients are added to ``.grad``. ``reduce_gradients`` must follow.

        PipelineError, on every process, where a rank failed, or where ranks of a pipeline have different plans.
        """
        micros, passes = list(micros), None
        problem: Exception | None = None
        try:
            plan.check()
            self.cut.check(plan.graph, micros)
            passes = RankPasses(plan, self.cut, micros, loss, weight, autocast, self.wire, self.device, pace)
        except Exception as error:  # whatever it is, every rank has to raise it
            problem = error
        self._agree(plan.digest, problem)
        assert passes is not None
        passes.run()
        return self._ended(passes)

    def _agree(self, digest: str, problem: Exception | None) -> None:
        found = self._gather((digest, f"{type(problem).__name__}: {problem}" if problem else ""))
        for process, (_, theirs) in enumerate(found):
            if theirs:
                raise PipelineError(f"rank {process} could not begin a batch: {theirs}") from problem
        for replica in range(self.replicas):
            first, *others = self.processes_of(replica)
            for process in others:
                if found[process][0] != found[first][0]:
                    raise PipelineError(
                        f"rank {process} has another plan than rank {first} ({found[process][0]} and "
                        f"{found[first][0]}): plan from the same batch, profile and options on all ranks"
                    )

    def _ended(self, passes: RankPasses) -> BatchSums:
        """Sums of all processes. PipelineError for the first failure, by the order of passes in time."""
        failure = passes.failure
        own = (failure.place, failure.text) if failure else None
        try:
            found = self._gather((own, _summed(passes.losses)))
        except RuntimeError as lost:
            text = failure.text if failure else f"it lost the other ranks at the end of a batch: {lost}"
            raise PipelineError(f"rank {self.process} failed: {text}") from (failure.error if failure else lost)
        failed = [(*theirs, process) for process, (theirs, _) in enumerate(found) if theirs]
        if failed:
            _, text, process = min(failed, key=lambda one: (one[0], one[2]))
            raise PipelineError(f"rank {process} failed: {text}") from (failure.error if failure else None)
        return _joined([sums for _, sums in found])

    def _gather(self, item: Any) -> list[Any]:
        """Items of all processes."""
        if self.processes == 1:
            return [item]
        items = [None] * self.processes
        dist.all_gather_object(items, item, group=self.everyone)
        return items

    # -- gradients -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def reduce_gradients(self) -> None:
        """Sum gradients over replicas, and over the two copies of a tied embedding, which stay equal bit for bit. A
        parameter without a gradient in all replicas has none afterwards."""
        if self.replicas > 1 and self.parameters:
            has = torch.tensor([float(p.grad is not None) for p in self.parameters], device=self.device)
            dist.all_reduce(has, op=dist.ReduceOp.MAX, group=self.same)
            for parameter, some in zip(self.parameters, has.tolist(), strict=True):
                if some:
                    self._sum(parameter, self.same)
        if (copied := self._tied_parameter()) is not None and copied.requires_grad:
            assert self.tied_group is not None
            self._sum(copied, self.tied_group)

    def _tied_parameter(self) -> nn.Parameter | None:
        """This rank's copy of a tied embedding that two ranks have."""
        if self.cut.tied is None or self.rank not in self.cut.tied:
            return None
        lm = self.cut.policy.lm
        end: Any = lm.get_input_embeddings() if self.rank == self.cut.tied[0] else lm.get_output_embeddings()
        return end.weight

    def _sum(self, parameter: nn.Parameter, group: dist.ProcessGroup) -> None:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        parameter.grad = parameter.grad.contiguous()
        dist.all_reduce(parameter.grad, group=group)

    @torch.no_grad()
    def global_norm(self) -> float:
        """Norm of the gradients of all distinct parameters of the model, the same on every process. To be asked behind
        ``reduce_gradients``; a tied embedding counts once."""
        norms = [
            torch.linalg.vector_norm(parameter.grad, dtype=torch.float64)
            for name, parameter in self.cut.policy.named_parameters()
            if parameter.grad is not None and name not in self.cut.copies
        ]
        squares = torch.stack(norms).square().sum().cpu() if norms else torch.zeros((), dtype=torch.float64)
        if self.processes > 1:
            dist.all_reduce(squares, group=self.peers)
        return float(squares.sqrt())


class Wires:
    """Process groups of the directed pairs of ranks. ``members``: processes by rank."""

    def __init__(self, groups: Mapping[Pair, dist.ProcessGroup], members: Sequence[int]):
        self.groups, self.members = groups, members
        self.rank = 0

    def greet(self, rank: int, device: torch.device) -> None:
        """Connect all pairs, in one order on all ranks: a library that connects at the first message would else wait
        in a circle."""
        self.rank = rank
        for sender, receiver in self.groups:
            if rank == sender:
                self.send(torch.zeros(1, device=device), receiver).wait()
            if rank == receiver:
                self.receive(torch.zeros(1, device=device), sender).wait()

    def send(self, tensor: Tensor, to: int) -> Transfer:
        """Begin to send to a rank."""
        work = dist.isend(tensor, self.members[to], group=self.groups[self.rank, to])
        assert work is not None
        return work

    def receive(self, into: Tensor, source: int) -> Transfer:
        """Begin to receive from a rank."""
        work = dist.irecv(into, self.members[source], group=self.groups[source, self.rank])
        assert work is not None
        return work


def _pairs(cut: PolicyCut) -> set[Pair]:
    """Directed pairs of ranks between which messages of any plan go."""
    chains = {
        module.name: [chunk.rank for chunk in cut.chunks if chunk.module == module.name] for module in cut.modules
    }
    forward = {pair for chain in chains.values() for pair in pairwise(chain)}
    forward |= {(chains[read][-1], chains[module.name][0]) for module in cut.modules for read in module.reads}
    return {pair for a, b in forward if a != b for pair in ((a, b), (b, a))}


def _summed(losses: Mapping[int, LossSums]) -> BatchSums:
    """Losses of a rank's microbatches, added up in their order whatever that of the passes was."""
    sums: dict[str, Tensor] = {}
    for _, out in sorted(losses.items()):
        for name, value in {"loss": out.total, **out.metrics}.items():
            sums[name] = _add(name, sums[name], value) if name in sums else value
    return BatchSums(
        {name: float(value.double()) for name, value in sums.items()},
        sum(out.count for out in losses.values()),
        sum(out.work for out in losses.values()),
    )


def _add(name: str, one: Any, other: Any) -> Any:
    if not name.endswith("_max"):
        return one + other
    return torch.maximum(one, other) if isinstance(one, Tensor) else max(one, other)


def _joined(parts: Sequence[BatchSums]) -> BatchSums:
    sums: dict[str, float] = {}
    for part in parts:
        for name, value in part.sums.items():
            sums[name] = _add(name, sums[name], value) if name in sums else value
    return BatchSums(sums, sum(part.count for part in parts), sum(part.work for part in parts))
