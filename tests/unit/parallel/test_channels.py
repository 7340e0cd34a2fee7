"""No valid plan deadlocks, also where a send ends only when its receive has begun: the real passes of all ranks as
threads, over channels like NCCL's."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from stepstack.core.types import LossOut
from stepstack.models.chunks import TensorSpec
from stepstack.parallel.passes import RankPasses
from stepstack.planning.pipeline.graph import Chunk, PipelineGraph, PipelineModule, PipelinePlan, SubMicrobatch
from tests.pipelines import drawn


class DeadlockError(BaseException):
    """All ranks wait, and none has what it waits for. No failure of a pass."""


class Rendezvous:
    """Channels of all pairs of ranks. In each the transfer number k takes place when its send and its receive have
    begun, and so have all before it; both ends wait for that. ``synchronous``: a send holds up its rank until then."""

    def __init__(self, ranks: int, synchronous: bool = False):
        self.changed = threading.Condition()
        self.sent: dict[tuple[int, int], list[Tensor]] = {}
        self.posted: dict[tuple[int, int], list[Tensor]] = {}
        self.running, self.waiting = ranks, dict[int, Callable[[], bool]]()
        self.synchronous, self.deadlock = synchronous, False
        self.sends: list[End] = []

    def begun(self, pair: tuple[int, int], side: dict[tuple[int, int], list[Tensor]], tensor: Tensor) -> int:
        with self.changed:
            own = side.setdefault(pair, [])
            own.append(tensor)
            self.changed.notify_all()
            return len(own)

    def wait(self, rank: int, ready: Callable[[], bool]) -> None:
        with self.changed:
            self.waiting[rank] = ready
            while not ready():
                stuck = len(self.waiting) == self.running and not any(one() for one in self.waiting.values())
                self.deadlock = self.deadlock or stuck
                if self.deadlock:
                    self.changed.notify_all()
                    raise DeadlockError
                self.changed.wait()
            del self.waiting[rank]

    def ended(self) -> None:
        with self.changed:
            self.running -= 1
            if self.waiting and len(self.waiting) == self.running and not any(one() for one in self.waiting.values()):
                self.deadlock = True
            self.changed.notify_all()


@dataclass
class End:
    """An end of a transfer."""

    world: Rendezvous
    rank: int
    pair: tuple[int, int]
    number: int
    into: Tensor | None = None
    waited: bool = False

    def ready(self) -> bool:
        return all(len(side.get(self.pair, ())) >= self.number for side in (self.world.sent, self.world.posted))

    def wait(self) -> None:
        self.world.wait(self.rank, self.ready)
        self.waited = True
        if self.into is not None:
            source = self.world.sent[self.pair][self.number - 1]
            assert source.shape == self.into.shape
            self.into.copy_(source)


@dataclass
class RendezvousWire:
    world: Rendezvous
    rank: int

    def send(self, tensor: Tensor, to: int) -> End:
        pair = self.rank, to
        end = End(self.world, self.rank, pair, self.world.begun(pair, self.world.sent, tensor))
        if self.world.synchronous:
            end.wait()
        self.world.sends.append(end)
        return end

    def receive(self, into: Tensor, source: int) -> End:
        pair = source, self.rank
        return End(self.world, self.rank, pair, self.world.begun(pair, self.world.posted, into), into)


class Layer:
    """A chunk of one weight, whose output has a shape of its own for each part."""

    def __init__(self, learns: bool):
        self.weight = nn.Parameter(torch.tensor(0.7, dtype=torch.float64), requires_grad=learns)
        self.trained, self.twice = [self.weight] if learns else [], list[nn.Parameter]()

    def __call__(self, micro: Any, part: SubMicrobatch, inputs: Any) -> Tensor:
        taken = sum((tensor.sum() / tensor.numel() for _, tensor in inputs), torch.zeros((), dtype=torch.float64))
        sizes = torch.arange(1, 1 + int(part.size), dtype=torch.float64)
        return torch.tanh(self.weight * (sizes / 7 + taken))

    def scorer(self, output: Tensor) -> Tensor:
        return output


@dataclass
class Layers:
    """The chunks of a rank."""

    rank: int
    held: dict[int, Layer]
    learns: tuple[bool, ...]

    def message(self, chunk: int, micro: Any, part: SubMicrobatch) -> TensorSpec:
        return (int(part.size),), torch.float64


@dataclass
class Blank:
    blank: bool = False


@dataclass
class Drawn:
    """A random model, batch and plan."""

    seed: int
    split: bool
    plan: PipelinePlan = field(init=False)
    learns: tuple[bool, ...] = field(init=False)

    def __post_init__(self) -> None:
        rng = random.Random(self.seed)
        ranks, count = rng.randrange(2, 5), rng.randrange(1, 4)
        modules: list[PipelineModule] = []
        for number in range(count):
            read = {module.name for module in modules if rng.random() < 0.5}
            if number == count - 1:  # what nobody reads has a loss, and there is one
                read |= {one.name for one in modules} - {name for one in modules for name in one.reads}
            modules.append(PipelineModule(str(number), rng.randrange(1, 5), tuple(sorted(read))))
        chunks = [
            Chunk(module.name, layer, layer + 1, rng.randrange(ranks))
            for module in modules
            for layer in range(module.layers)
        ]
        chunks[0] = Chunk(chunks[0].module, 0, 1, ranks - 1)
        parts = []
        for microbatch in range(rng.randrange(1, 8)):
            there: set[str] = set()
            for module in reversed(modules):
                readers = {one.name for one in modules if module.name in one.reads}
                if readers <= there and (not readers or rng.random() < 0.8):
                    there.add(module.name)
                    parts += [
                        SubMicrobatch(microbatch, module.name, (item,), float(rng.randrange(1, 5)))
                        for item in range(rng.randrange(1, 3) if readers else 1)
                    ]
        split = frozenset(range(len(chunks))) if self.split else frozenset()
        graph = PipelineGraph(tuple(modules), tuple(chunks), tuple(parts), split)
        self.plan = drawn(graph, self.seed)
        self.learns = tuple(rng.random() < 0.8 for _ in chunks)

    def passes(self, rank: int, wire: Any, held: dict[int, Layer], broken: int | None = None) -> RankPasses:
        def loss(module: Tensor, micro: Blank) -> LossOut:
            if broken is not None:
                raise ValueError(f"loss {broken}")
            return LossOut(total=module.sum(), count=1, work=1)

        own = Layers(rank, held, self.learns)
        micros = [Blank()] * self.plan.graph.microbatches
        return RankPasses(self.plan, own, micros, loss, 0.5, nullcontext, wire, torch.device("cpu"))

    def layers(self, rank: int | None = None) -> dict[int, Layer]:
        return {
            number: Layer(self.learns[number])
            for number, chunk in enumerate(self.plan.graph.chunks)
            if rank in (None, chunk.rank)
        }


def carried_out(drawn_case: Drawn, world: Rendezvous, broken: bool = False) -> list[RankPasses]:
    ranks = range(len(drawn_case.plan.order))
    found = [
        drawn_case.passes(rank, RendezvousWire(world, rank), drawn_case.layers(rank), rank if broken else None)
        for rank in ranks
    ]
    errors: list[BaseException] = []

    def work(passes: RankPasses) -> None:
        try:
            passes.run()
        except BaseException as error:  # the test shows it
            errors.append(error)
        world.ended()

    threads = [threading.Thread(target=work, args=(passes,), daemon=True) for passes in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert world.deadlock or not errors, errors
    assert not any(thread.is_alive() for thread in threads)
    return found


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 1 << 30), split=st.booleans())
def test_no_valid_plan_deadlocks(seed, split):
    case = Drawn(seed, split)
    world = Rendezvous(len(case.plan.order))
    found = carried_out(case, world)
    assert not world.deadlock
    assert [passes.failure for passes in found] == [None] * len(found)
    assert all(len(world.sent[pair]) == len(world.posted[pair]) for pair in world.sent.keys() | world.posted.keys())
    assert all(end.waited for end in world.sends)  # till then what they send must be held
    assert not any(passes.saved for passes in found)
    grads = {number: layer.weight.grad for passes in found for number, layer in passes.chunks.held.items()}
    alone = one_rank(case)
    for number, layer in alone.items():
        assert (grads[number] is None) == (layer.weight.grad is None)
        if grads[number] is not None:
            assert torch.allclose(grads[number], layer.weight.grad, rtol=1e-12, atol=0)


def one_rank(case: Drawn) -> dict[int, Layer]:
    """Gradients by autograd over the whole batch, without passes."""
    graph, layers = case.plan.graph, case.layers()
    outputs: dict[tuple[int, int], Tensor] = {}
    total = torch.zeros((), dtype=torch.float64)
    for action in case.plan.in_time():
        if action.kind == "F":
            inputs = [(graph.parts[one.part], outputs[one.chunk, one.part]) for one in graph.sources(action)]
            output = outputs[action.chunk, action.part] = layers[action.chunk](None, graph.parts[action.part], inputs)
            if graph.parts[action.part].module == graph.modules[-1].name and action.chunk == len(graph.chunks) - 1:
                total = total + output.sum() * 0.5
    if total.requires_grad:
        total.backward()
    return layers


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1 << 30), split=st.booleans())
def test_a_rank_that_fails_holds_up_nobody(seed, split):
    case = Drawn(seed, split)
    world = Rendezvous(len(case.plan.order))
    found = carried_out(case, world, broken=True)
    assert not world.deadlock
    last = case.plan.graph.chunks[-1].rank
    first = min((passes.failure for passes in found if passes.failure), key=lambda failure: failure.place)
    assert first.text.endswith(f"ValueError: loss {last}")


def test_sends_that_hold_up_their_rank_would_deadlock():
    """The simulation can fail: with sends that wait, some plans get stuck."""
    stuck = 0
    for seed in range(60):
        case = Drawn(seed, split=False)
        world = Rendezvous(len(case.plan.order), synchronous=True)
        carried_out(case, world)
        stuck += world.deadlock
    assert stuck > 0
