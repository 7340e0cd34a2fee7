"""`stepstack bench stream`: the schedules of StreamRL in real time, paced: real server, workers, messages and weights.

Only the devices' computing is modelled. A worker sleeps each decode step as the published curve of one H800 says, the
trainer sleeps the seconds of the tokens that it takes, and lengths are drawn from a long-tailed law, cut off at 200
tokens where the paper has 20K. Nothing is learned. Workers are threads that talk over sockets; each has a tiny model
that the weights are loaded into.

Every schedule does the same work. Beside its seconds stand those that the simulator says for the same lengths, curve
and units, which an instance takes whole, as a worker does. "stream, groups" takes each group as it ends, "stream,
units" whole units in their order, as loops/stream.py does. "one-step" sends weights while both sides wait.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from evals.tables import bench_stream
from stepstack.core import hf
from stepstack.generation.config import HfConfig
from stepstack.generation.hf import HfGenerator
from stepstack.generation.service.buffer import WorkUnit
from stepstack.generation.service.config import StreamConfig
from stepstack.generation.service.pace import Pace, Paced
from stepstack.generation.service.trainer import RolloutServer
from stepstack.generation.service.weights import WeightFiles, packed
from stepstack.generation.service.worker import Worker
from stepstack.generation.types import Group, Prompt, Sampling, rollout_seed
from stepstack.models.lm import tiny
from stepstack.planning.rollout.curves import DecodeCurve
from stepstack.planning.rollout.dispatch import Dispatcher, Fifo, LengthSplit, LongestFirst, Stealing, Unit, Waiting
from stepstack.planning.rollout.lengths import LogNormalLengths
from stepstack.records import Problem
from stepstack.report.provenance import provenance
from stepstack.simulation.rollout.pipelines import Lengths, Setup, simulate
from stepstack.terminal import console

CURVE = DecodeCurve(  # StreamRL, figure 6: a 7B model on one H800
    batch=(1, 2, 4, 8, 16, 32, 64), milliseconds=(8.3, 8.7, 8.9, 9.0, 9.4, 10.2, 11.7)
)
LENGTHS = LogNormalLengths(median=34, sigma=0.85, longest=200)  # the example's of `sim rollout`, by 100
TOKEN_SECONDS = 5e-4  # of training on one device, so that it takes about as long as generation on two
LINK_SECONDS = 0.3  # of the throttled link, to all workers together
RANKER_ERROR = 0.45  # standard deviation of the ranker's logarithm of the length
DISPATCHED, UNIT_ROWS, DISPATCH_WORKERS = 96, 6, 4
IDENTITY = {"bench": "stream"}

Pipeline = Literal["colocated", "batch", "stream", "one-step", "async"]


@dataclass(frozen=True, slots=True)
class Plan:
    """A schedule on its machines. ``size``: rows of a unit. ``token_seconds``: seconds of training on a token, on all
    training devices; 0 is generation alone. ``link``: seconds in which a version travels to all workers; 0 is a folder
    that all see. ``groups``: whether the trainer takes groups as they end, or whole units."""

    pipeline: Pipeline
    workers: int
    size: int
    token_seconds: float
    link: float = 0.0
    groups: bool = False

    @property
    def staleness(self) -> int:
        return int(self.pipeline in ("one-step", "async"))


def plans(rows: int, generation: int, training: int) -> dict[str, Plan]:
    """The schedules by name. Colocated, all devices do both stages."""
    devices = generation + training
    whole = Plan("batch", generation, -(-rows // generation), TOKEN_SECONDS / training)
    return {
        "colocated": Plan("colocated", devices, -(-rows // devices), TOKEN_SECONDS / devices),
        "batch": whole,
        "stream, units": replace(whole, pipeline="stream", size=-(-rows // (2 * generation))),
        "stream, groups": replace(whole, pipeline="stream", groups=True),
        "one-step": replace(whole, pipeline="one-step"),
        "async": replace(whole, pipeline="async", groups=True),
    }


def measure(
    rounds: int = 3, iterations: int = 6, rows: int = 60, generation: int = 2, training: int = 1
) -> dict[str, Any]:
    """Seconds of ``iterations`` of ``rows`` responses on so many devices by every schedule, ``rounds`` times with other
    lengths; the same with a throttled link; and of one iteration by several orders of its units."""
    torch.set_num_threads(1)
    schedules, link, orders = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(rounds):
            place = Path(folder) / str(seed)
            lengths = draw(seed, iterations, rows)
            known = plans(rows, generation, training)
            for name, plan in known.items():
                schedules.append({"name": name, "seed": seed, **contest(plan, lengths, place / name)})
            for name in ("one-step", "async"):
                throttled = replace(known[name], link=LINK_SECONDS)
                link.append({"name": name, "seed": seed, **contest(throttled, lengths, place / f"{name}, link")})
            orders += [{"seed": seed, **row} for row in dispatched(seed, place)]
    measured = [*schedules, *link, *orders]
    late = sum(row["late"] for row in measured) / sum(row["deadlines"] for row in measured)
    facts = {"iterations": iterations, "rows": rows, "generation": generation, "training": training}
    figures = {"schedules": schedules, "link": link, "link_seconds": LINK_SECONDS, "dispatch": orders}
    return {"bench": "stream", "paced": True, "late": late, **facts, **figures, "provenance": provenance()}


def draw(seed: int, iterations: int, rows: int) -> list[list[int]]:
    """Tokens of each row of each iteration."""
    shares = [[(rollout_seed(seed, at, row) + 0.5) / 2**63 for row in range(rows)] for at in range(iterations)]
    return [LENGTHS.quantiles(one).tolist() for one in shares]


# -- in real time -------------------------------------------------------------------------------------------------


def contest(
    plan: Plan, lengths: Lengths, folder: Path, policy: Callable[[], Dispatcher] | None = None
) -> dict[str, float]:
    """Paced and simulated seconds of a plan, and its deadlines. ``policy`` makes a dispatcher, one for each clock; by
    default the first unit that waits is the next one."""
    with opened(plan, lengths, folder) as stage:
        if policy is not None:
            stage.dispatch_by(policy())
        began = time.monotonic()
        stage.run()
        seconds = time.monotonic() - began
        paces = stage.paces
    counts = {"deadlines": sum(pace.deadlines for pace in paces), "late": sum(pace.late for pace in paces)}
    return {"paced": seconds, "simulated": simulated(plan, lengths, (policy or Fifo)()), **counts}


@contextmanager
def opened(plan: Plan, lengths: Lengths, folder: Path) -> Iterator[Stage]:
    """A server and workers that have the first weights, ready to run a plan."""
    model = network()
    rate = None
    if plan.link:
        rate = plan.workers * difference_bytes(model, folder / "rate") / plan.link / 1e6
    mode: Literal["link", "folder"] = "link" if plan.link else "folder"
    cfg = StreamConfig(workers=0, staleness=plan.staleness, weights=mode, rate=rate)
    server = RolloutServer(cfg, folder / "stream", IDENTITY, None)
    stage = Stage(plan, lengths, server, model)
    threads = [threading.Thread(target=stage.worker(folder / f"w{at}").run, daemon=True) for at in range(plan.workers)]
    for thread in threads:
        thread.start()
    try:
        stage.warm_up()
        yield stage
    finally:
        server.close()
        for thread in threads:
            thread.join()


class Stage:
    """A trainer whose computing is slept, and what its workers are made of. Step 0 warms up: iteration i is step i + 1
    of the server."""

    def __init__(self, plan: Plan, lengths: Lengths, server: RolloutServer, model: dict[str, Tensor]):
        self.plan, self.lengths, self.server, self.model = plan, lengths, server, model
        self.pace = Pace()
        self.paces = [self.pace]
        rows = len(lengths[0]) + plan.workers  # those of the warm-up come last
        self.prompts = [Prompt(Problem(row, "", ""), (2,)) for row in range(rows)]
        measured = self.prompts[: len(lengths[0])]
        self.parts = [measured[start : start + plan.size] for start in range(0, len(measured), plan.size)]

    def worker(self, folder: Path) -> Worker:
        words, pace = tiny.tokenizer(), Pace()
        self.paces.append(pace)
        engine = HfGenerator(hf.without_memory(empty_network), words, HfConfig(), torch.device("cpu"))
        generator = Paced(engine, CURVE, self._tokens, pace)
        opened_sampler = generator, dict(enumerate(self.prompts))
        return Worker(
            address=self.server.address,
            token=self.server.token,
            identity=IDENTITY,
            name=folder.name,
            patience=self.server.cfg.patience,
            sampling=Sampling(max_tokens=LENGTHS.longest),
            folder=folder,
            open_sampler=lambda _: opened_sampler,
        )

    def _tokens(self, seed: int, problem: int, sample: int) -> int:
        rows = self.lengths[seed]
        return rows[problem] if problem < len(rows) else 1

    def warm_up(self) -> None:
        """Wait until every worker has loaded version 0 and made a group."""
        workers = self.server.workers
        _wait_until(lambda: len(workers) == self.plan.workers and all(one.idle for one in list(workers.values())))
        self.publish(0)
        self.server.admit(0, 0, [[prompt] for prompt in self.prompts[-self.plan.workers :]], Sampling())
        for number in range(self.plan.workers):
            self.server.unit(0, number)
        self.server.trained(0)
        _wait_until(lambda: all(one.idle for one in list(workers.values())))

    def dispatch_by(self, policy: Dispatcher) -> None:
        """Let a policy choose among the waiting units of the first iteration."""
        places = {sender.hex(): place for place, sender in enumerate(self.server.workers)}
        policy.begin([Unit(0, number, number) for number in range(len(self.parts))], list(places.values()))

        def choose(waiting: Sequence[WorkUnit], worker: str) -> WorkUnit:
            units = {unit.number: unit for unit in waiting}
            asked = {number: Unit(0, number, number) for number in sorted(units)}
            found = policy.next_unit(asked, places[worker], list(places.values()))
            assert found is not None  # no policy of this bench keeps units back
            return units[found.number]

        self.server.buffer.choose = choose

    # -- the verbs -------------------------------------------------------------------------------------------------

    def publish(self, version: int) -> None:
        generator = torch.Generator().manual_seed(version)
        moved = {name: torch.randn(value.shape, generator=generator) for name, value in self.model.items()}
        self.server.publish(moved, version)

    def admit(self, at: int, version: int) -> None:
        self.server.admit(at + 1, version, self.parts, Sampling(seed=at))

    def await_loaded(self, version: int) -> None:
        workers = self.server.workers
        _wait_until(lambda: all(version in one.verified for one in list(workers.values())))

    def all_groups(self, at: int) -> list[Group]:
        return [group for number in range(len(self.parts)) for group in self.server.unit(at + 1, number)]

    def train(self, groups: Sequence[Group]) -> None:
        """Sleep as long as training takes, a micro-batch of one group at a time."""
        self.pace.start()
        for group in groups:
            self.pace.wait(sum(len(rollout.ids) for rollout in group.rollouts) * self.plan.token_seconds)

    def train_on_arrival(self, at: int) -> None:
        """Train on what is there, groups or units."""
        known: set[int] = set()
        if not self.plan.groups:
            for number in range(len(self.parts)):
                self.train(self.server.unit(at + 1, number))
            return
        while len(known) < len(self.lengths[at]):
            groups = self.server.ended(at + 1, known)
            self.train(groups)
            known |= {group.prompt.problem.index for group in groups}

    # -- the schedules, as simulation/rollout/pipelines.py has them --------------------------------------------------

    def run(self) -> None:
        match self.plan.pipeline:
            case "colocated" | "batch":
                self.one_after_another(streamed=False)
            case "stream":
                self.one_after_another(streamed=True)
            case "one-step":
                self.one_step()
            case "async":
                self.fully_async()

    def one_after_another(self, streamed: bool) -> None:
        for at in range(len(self.lengths)):
            if at:
                self.publish(at)
            self.admit(at, at)
            if streamed:
                self.train_on_arrival(at)
            else:
                groups = self.all_groups(at)
                if self.plan.token_seconds:
                    self.train(groups)
            self.server.trained(at + 1)

    def one_step(self) -> None:
        last = len(self.lengths) - 1
        self.admit(0, 0)
        groups = self.all_groups(0)
        for at in range(last + 1):
            if at < last:
                self.admit(at + 1, at)
                self.await_loaded(at)
            self.train(groups)
            if at < last:
                groups = self.all_groups(at + 1)
            self.server.trained(at + 1)
            if at + 1 < last:
                self.publish(at + 1)

    def fully_async(self) -> None:
        for at in range(min(2, len(self.lengths))):
            self.admit(at, 0)
        for at in range(len(self.lengths)):
            self.train_on_arrival(at)
            self.server.trained(at + 1)
            if at + 2 < len(self.lengths):
                self.publish(at + 1)
                self.admit(at + 2, at + 1)


def empty_network() -> Any:
    return tiny.qwen2(len(tiny.tokenizer()), hidden=16, layers=2, intermediate=32, seed=0, max_length=512)


def network() -> dict[str, Tensor]:
    return {name: value.detach() for name, value in empty_network().named_parameters()}


def difference_bytes(model: Mapping[str, Tensor], folder: Path) -> int:
    """Bytes that the link sends of a version all of whose numbers changed."""
    files = WeightFiles(folder)
    for version in (0, 1):
        generator = torch.Generator().manual_seed(version)
        files.write({name: torch.randn(v.shape, generator=generator) for name, v in model.items()}, version)
    return len(packed(files.path(1).read_bytes(), files.path(0).read_bytes()))


def _wait_until(true: Callable[[], bool]) -> None:
    while not true():
        time.sleep(0.002)


# -- in simulation ------------------------------------------------------------------------------------------------


class WholeUnits:
    """Dispatcher of simulated rows that hands them out as the server does: an instance takes a unit of ``size`` rows
    whole, and the next one after all of them have ended. ``policy`` names the unit."""

    def __init__(self, size: int, policy: Dispatcher):
        self.size, self.policy = size, policy
        self.leased: dict[int, Unit] = {}  # instance -> its unit
        self.running: dict[Unit, set[Unit]] = {}  # unit -> rows that have not ended

    def begin(self, units: Sequence[Unit], workers: Sequence[int]) -> None:
        self.policy.begin(list(dict.fromkeys(map(self._unit, units))), workers)

    def next_unit(self, waiting: Waiting, worker: int, workers: Sequence[int]) -> Unit | None:
        if worker not in self.leased:
            free = dict.fromkeys(unit for unit in map(self._unit, waiting.values()) if unit not in self.running)
            chosen = self.policy.next_unit({unit.number: unit for unit in free}, worker, workers)
            if chosen is None:
                return None
            self.leased[worker] = chosen
            self.running[chosen] = {row for row in waiting.values() if self._unit(row) == chosen}
        mine = self.leased[worker]
        return next((row for row in waiting.values() if self._unit(row) == mine), None)

    def ended(self, unit: Unit, tokens: int) -> None:
        whole = self._unit(unit)
        self.running[whole].remove(unit)
        if not self.running[whole]:
            del self.running[whole]
            self.leased = {worker: held for worker, held in self.leased.items() if held != whole}

    def _unit(self, row: Unit) -> Unit:
        return Unit(row.iteration, row.number // self.size, row.number // self.size)


def simulated(plan: Plan, lengths: Lengths, policy: Dispatcher) -> float:
    """Seconds of a plan in simulation."""
    machines = Setup(
        instances=plan.workers,
        cap=plan.size,
        curve=CURVE,
        token_seconds=plan.token_seconds,
        weights_seconds=plan.link,
        samples=1 if plan.groups or plan.pipeline != "stream" else plan.size,
    )
    return simulate(plan.pipeline, machines, lengths, WholeUnits(plan.size, policy)).seconds


# -- orders of units ----------------------------------------------------------------------------------------------


def dispatched(seed: int, folder: Path) -> list[dict[str, Any]]:
    """Seconds of generating one iteration, by the rule that puts rows into units and names the next one."""
    [tokens] = draw(1000 + seed, 1, DISPATCHED)
    errors = np.random.default_rng(seed).normal(0, RANKER_ERROR, DISPATCHED)
    guesses = {"ranker": (np.array(tokens) * np.exp(errors)).tolist(), "oracle": [float(one) for one in tokens]}
    plan = Plan("batch", DISPATCH_WORKERS, UNIT_ROWS, 0.0)
    rows = [{"name": "random", **contest(plan, [tokens], folder / "random", Fifo)}]
    for source, guess in guesses.items():
        order = sorted(range(DISPATCHED), key=guess.__getitem__, reverse=True)
        longest = [guess[row] for row in order[::UNIT_ROWS]]  # of each unit
        lengths = [[tokens[row] for row in order]]
        for name, policy in policies(longest).items():
            where = folder / f"{name}, {source}"
            rows.append({"name": f"{name}, {source}", **contest(plan, lengths, where, policy)})
    alone, even = max(tokens) * CURVE.seconds(1), sum(tokens) * CURVE.seconds(UNIT_ROWS) / UNIT_ROWS / DISPATCH_WORKERS
    return [{**row, "bound": max(alone, even)} for row in rows]


def policies(longest: Sequence[float]) -> dict[str, Callable[[], Dispatcher]]:
    """Policies that know the longest row of each unit: the longest unit first, and algorithm 2, whose idle instances
    take from others since a worker that asks is given a unit."""

    def estimate(unit: Unit) -> float:
        return longest[unit.number]

    alone = DecodeCurve(batch=(1,), milliseconds=(CURVE.seconds(UNIT_ROWS) * 1e3,))  # a unit decodes by itself
    return {
        "longest first": lambda: LongestFirst(estimate),
        "algorithm 2": lambda: Stealing(LengthSplit(estimate, 1, alone)),
    }


def show(result: dict[str, Any]) -> None:
    out = console()
    for number, table in enumerate(bench_stream.tables_of(result)):
        shown = Table(title=("Schedules", "Dispatch")[number] + ", paced")
        for place, column in enumerate(table.head):
            shown.add_column(column, justify="right" if place else "left")
        for row in table.rows:
            shown.add_row(*map(str, row))
        out.print(shown)
        for note in table.notes:
            out.print(note)
