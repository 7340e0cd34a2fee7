"""Study of `stepstack sim rollout`: pipelines and dispatch policies of a file on the devices that its plan gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from stepstack.config import ConfigError
from stepstack.planning.rollout import dispatch
from stepstack.planning.rollout.allocation import Allocation
from stepstack.planning.rollout.curves import DecodeGeneration
from stepstack.planning.rollout.dispatch import DispatchConfig, Dispatcher, Unit
from stepstack.planning.rollout.job import OneDatacentre, PipelineName, RolloutJob, make_plan, training_seconds
from stepstack.planning.rollout.lengths import evenly
from stepstack.report.provenance import provenance
from stepstack.simulation.rollout.pipelines import Outcome, Setup, simulate

POLICIES: dict[str, DispatchConfig] = {
    "random": dispatch.RandomDispatch(),
    "fifo": dispatch.FifoDispatch(),
    "steal": dispatch.StealDispatch(),
    "sibling": dispatch.SiblingDispatch(),
    "history": dispatch.HistoryDispatch(),
    "length": dispatch.LengthDispatch(),
    "length, paper's sum": dispatch.LengthDispatch(objective="paper"),
    "longest": dispatch.LongestDispatch(),
    "oracle": dispatch.OracleDispatch(),
}
Advance = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Workload:
    """Drawn lengths and a ranker's estimates of them, [iterations, rows]. Iterations visit the same prompts."""

    tokens: NDArray[np.int64]
    estimates: NDArray[np.float64]

    @property
    def lengths(self) -> list[list[int]]:
        """Tokens of each row of each iteration."""
        return self.tokens.tolist()

    def truth(self, unit: Unit) -> float:
        """Tokens of a unit."""
        return float(self.tokens[unit.iteration, unit.number])

    def estimate(self, unit: Unit) -> float:
        """Estimate of a ranker."""
        return float(self.estimates[unit.iteration, unit.number])

    def recall(self, share: float) -> float:
        """Part of the first iteration's longest ``share`` of rows that is among those with the largest estimates."""
        many = max(1, round(share * self.tokens.shape[1]))
        longest, ranked = np.argsort(self.tokens[0])[-many:], np.argsort(self.estimates[0])[-many:]
        return len(np.intersect1d(longest, ranked)) / many


def draw(job: RolloutJob, iterations: int, seed: int) -> Workload:
    """Lengths of the job's distribution. A prompt has a tendency of its own, of which its samples and its visits in
    other iterations differ by ``unlike_siblings`` of the variance (normal copula)."""
    rng, options = np.random.default_rng(seed), job.simulation
    prompts = rng.normal(size=job.rows // job.samples).repeat(job.samples)
    own = rng.normal(size=(iterations, job.rows))
    level = np.sqrt(1 - options.unlike_siblings) * prompts + np.sqrt(options.unlike_siblings) * own
    shares = np.clip(ndtr(level), 1e-12, 1 - 1e-12)
    tokens = job.lengths.quantiles(shares.reshape(-1)).reshape(shares.shape)
    estimates = tokens * np.exp(rng.normal(0, options.ranker_error, tokens.shape))
    return Workload(tokens, estimates)


def decode(job: RolloutJob) -> DecodeGeneration:
    """Generation of a job that can be simulated. ConfigError where its file has only seconds by devices."""
    if not isinstance(job.generation, DecodeGeneration):
        raise ConfigError("generation.type = 'step': seconds by devices cannot be simulated; give type decode, a curve")
    return job.generation


def setup(job: RolloutJob, found: Allocation, pipeline: PipelineName) -> Setup:
    """Machines of a pipeline on an allocation's devices: both stages on all of them where they are colocated."""
    generation, options = decode(job), job.simulation
    tokens = int(evenly(job.lengths, job.rows).sum())
    together = pipeline == "colocated"
    devices = found.generation + found.training
    seconds = training_seconds(job, tokens, devices if together else found.training)
    return Setup(
        instances=(devices if together else found.generation) // generation.instance_devices,
        cap=generation.cap,
        curve=generation,
        token_seconds=seconds / tokens,
        weights_seconds=0.0 if together else job.weights_seconds,
        samples=job.samples,
        saturate=options.saturate or max(1, tokens // 8),
        mini_batches=options.mini_batches,
        faults=tuple((death.seconds, death.instance) for death in options.deaths),
    )


def dispatcher(job: RolloutJob, config: DispatchConfig, workload: Workload) -> Dispatcher:
    """Dispatcher of a config that asks the workload for estimates."""
    generation = decode(job)
    return dispatch.build(config, workload.estimate, workload.truth, generation.cap, generation)


def _check_deaths(job: RolloutJob, machines: Setup, pipeline: PipelineName) -> None:
    dead = {death.instance for death in job.simulation.deaths}
    if dead and max(dead) >= machines.instances:
        raise ConfigError(
            f"simulation.deaths: {pipeline} has no instance {max(dead)}: name one of 0 to {machines.instances - 1}"
        )
    if len(dead) == machines.instances:
        raise ConfigError(f"simulation.deaths: all {len(dead)} instances of {pipeline} die: leave one alive")


def outcomes(job: RolloutJob, step: Advance) -> dict[str, Outcome]:
    """Outcome of every pipeline of the job on the same rows. ConfigError for colocation across datacentres."""
    found, options = make_plan(job).allocation, job.simulation
    names = options.pipelines
    if not isinstance(job.machines, OneDatacentre):
        names = tuple(name for name in names if name != "colocated")  # the stages' devices are of different kinds
        if not names:
            raise ConfigError("simulation.pipelines: stages in two datacentres cannot be colocated; name another one")
    workload = draw(job, options.iterations, options.seed)
    results: dict[str, Outcome] = {}
    for name in names:
        machines = setup(job, found, name)
        _check_deaths(job, machines, name)
        results[name] = simulate(name, machines, workload.lengths, dispatcher(job, job.dispatch, workload))
        step()
    return results


def makespans(
    job: RolloutJob, instances: int, step: Advance, names: Sequence[str] = tuple(POLICIES)
) -> dict[str, float]:
    """Seconds of generating one iteration by the named policies on so many instances, and the lower ``bound``.

    Policies that learn have seen one iteration of the same prompts before. The bound is the longest row alone, or all
    work evenly spread at the largest batch, whichever is longer.
    """
    generation, workload = decode(job), draw(job, 2, job.simulation.seed)
    machines = Setup(
        instances=instances,
        cap=generation.cap,
        curve=generation,
        token_seconds=0.0,
        weights_seconds=0.0,
        samples=job.samples,
    )
    found = {}
    for name in names:
        config = POLICIES[name]
        both = simulate("batch", machines, workload.lengths, dispatcher(job, config, workload))
        first = max(span.end for span in both.spans if span.lane >= 0 and span.iteration == 0)
        found[name] = both.seconds - first
        step()
    rate = max(rows / generation.seconds(rows) for rows in range(1, generation.cap + 1))
    tokens = workload.tokens[1]
    alone, even = int(tokens.max()) * generation.seconds(1), int(tokens.sum()) / instances / rate
    return found | {"bound": max(alone, even)}


def run(job: RolloutJob, results: Mapping[str, Outcome], step: Advance) -> dict[str, Any]:
    """Record of the study as JSON values."""
    plan = make_plan(job)
    instances = plan.allocation.generation // decode(job).instance_devices
    seconds = makespans(job, instances, step)
    recall = draw(job, 1, job.simulation.seed).recall(job.long_share)
    return {
        "kind": "rollout",
        "devices": {"generation": plan.allocation.generation, "training": plan.allocation.training},
        "pipelines": [
            {
                "pipeline": name,
                "seconds": one.per_iteration,
                "throughput": one.throughput,
                "per_price": one.throughput / plan.price,
                "trainer_idle": one.trainer_idle,
                "generator_idle": one.generator_idle,
                "weights_exposed": one.exposed / one.iterations,
                "lag": one.lag,
                "redone": one.redone,
            }
            for name, one in results.items()
        ],
        "dispatch": [
            {"policy": name, "seconds": value, "ratio": value / seconds["random"]} for name, value in seconds.items()
        ],
        "recall": recall,
        "provenance": provenance(),
    }


def tables(study: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Tables of the study as (title, head, rows)."""
    devices, rows = study["devices"], study["pipelines"]
    first = rows[0]["throughput"]
    speeds, waits = [], []
    for row in rows:
        rates = (f"{row[key]:.3g}" for key in ("seconds", "throughput", "per_price"))
        speeds.append([row["pipeline"], *rates, f"{row['throughput'] / first:.2f}"])
        idle = (f"{row[key]:.0%}" for key in ("trainer_idle", "generator_idle"))
        counts = (str(row[key]) for key in ("lag", "redone"))
        waits.append([row["pipeline"], *idle, f"{row['weights_exposed']:.1f}", *counts])
    title = f"Pipelines, simulated: {devices['generation']} devices generate, {devices['training']} train"
    policies: Sequence[Mapping[str, Any]] = study["dispatch"]
    return [
        (title, ["", "s an iteration", "rows/s", "rows/s by cost", f"x {rows[0]['pipeline']}"], speeds),
        ("What waits", ["", "trainer idle", "instances idle", "only weights, s", "lag", "rows redone"], waits),
        (
            f"Dispatch, simulated: generation of an iteration (recall of the ranker {study['recall']:.2f})",
            ["", "seconds", "x random"],
            [[row["policy"], f"{row['seconds']:.1f}", f"{row['ratio']:.2f}"] for row in policies],
        ),
    ]
