"""Experiments of StreamRL's evaluation (arXiv 2504.15930), simulated with the published decode curve.

Only the curve of the 7B model is published, so that it stands for all three models. docs/streamrl.md says what else is
ours: lengths, training times, KV caps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import fmean
from typing import Any

from stepstack import config
from stepstack.config import CONFIGS
from stepstack.planning.rollout import allocation, dispatch
from stepstack.planning.rollout.curves import StageCurve
from stepstack.planning.rollout.dispatch import DispatchConfig
from stepstack.planning.rollout.job import PipelineName, RolloutJob, make_plan
from stepstack.planning.rollout.lengths import LogNormalLengths
from stepstack.report.provenance import provenance
from stepstack.simulation.rollout import study
from stepstack.simulation.rollout.pipelines import Outcome, simulate

SINGLE, CROSS = (CONFIGS / "plans" / f"{name}.yaml" for name in ("rollout-streamrl", "rollout-streamrl-cross"))
# Figure 9's models as (instances, KV cap) for 1024 rows. Ours: the larger the model, the fewer its instances and the
# more waves of rows, from two to four.
WAVES = {"7B": (16, 32), "32B": (4, 64), "72B": (8, 32)}
# Figure 10's points, relative to generation on half of the devices: (devices, devices of the figure, their times).
SHARES = {
    "32B": (64, StageCurve(devices=(32, 40), seconds=(1.0, 0.80)), StageCurve(devices=(24, 32), seconds=(0.73, 0.73))),
    "72B": (128, StageCurve(devices=(64, 80), seconds=(1.0, 0.81)), StageCurve(devices=(48, 64), seconds=(0.83, 0.58))),
}
NODE = 8  # GPUs that change sides together
Progress = Callable[[str, int], Callable[[], None]]  # (what, units) -> advance by one


def run(seeds: int, progress: Progress) -> dict[str, Any]:
    """Record of all experiments as JSON values; means over draws of lengths with ``seeds`` seeds."""
    job = config.read(RolloutJob, SINGLE)
    results: dict[str, Any] = {"kind": "streamrl", "seeds": seeds}
    step = progress("figure 9", len(WAVES) * seeds)
    results["dispatch"] = {name: _dispatch(job, *waves, seeds, step) for name, waves in WAVES.items()}
    results["allocation"] = {name: _allocation(name) for name in SHARES}
    step = progress("figure 12", 3 * seeds)
    results["per_price"] = {name: _per_price(part, seeds, step) for name, part in (("20K", 1), ("10K", 2), ("5K", 4))}
    step = progress("table 3 and figure 8", seeds)
    results["throughput"] = _throughput(job, seeds, step)
    return results | {"provenance": provenance()}


def _dispatch(job: RolloutJob, instances: int, cap: int, seeds: int, step: study.Advance) -> dict[str, float]:
    """Generation latency over Random-FIFO by Algorithm 2, with a ranker and with true lengths."""
    job = replace(job, generation=replace(study.decode(job), cap=cap))
    ratios: dict[str, list[float]] = {"ranker": [], "oracle": []}
    for seed in range(seeds):
        seeded = replace(job, simulation=replace(job.simulation, seed=seed))
        found = study.makespans(seeded, instances, lambda: None, ("random", "length", "oracle"))
        ratios["ranker"].append(found["length"] / found["random"])
        ratios["oracle"].append(found["oracle"] / found["random"])
        step()
    return {name: fmean(values) for name, values in ratios.items()}


def _allocation(model: str) -> dict[str, float]:
    """Algorithm 1 on a profile that is interpolated between the figure's points, in whole machines."""
    devices, generation, training = SHARES[model]
    found = allocation.single(devices, generation.at, training.at, NODE)
    return {"generation": found.generation, "training": found.training, "seconds": found.seconds}


def _per_price(shorter: int, seeds: int, step: study.Advance) -> dict[str, float]:
    """Rows a second over cost, fully asynchronous, in one datacentre and across two; lengths are divided by
    ``shorter``. Both pay for all their machines, as in the paper."""
    rates: dict[str, list[float]] = {"single": [], "cross": []}
    for seed in range(seeds):
        for name, file in (("single", SINGLE), ("cross", CROSS)):
            job = config.read(RolloutJob, file)
            assert isinstance(job.lengths, LogNormalLengths)
            scaled = replace(job.lengths, median=job.lengths.median / shorter, longest=job.lengths.longest // shorter)
            price = sum(job.prices[pool.device] * pool.devices / job.machine_devices for pool in job.pools.values())
            outcome = _outcome(replace(job, lengths=scaled), "async", dispatch.LengthDispatch(), seed)
            rates[name].append(outcome.throughput / price)
        step()
    single, cross = fmean(rates["single"]), fmean(rates["cross"])
    return {"single": single, "cross": cross, "ratio": cross / single}


def _throughput(job: RolloutJob, seeds: int, step: study.Advance) -> dict[str, float]:
    """Rows a second of table 3's rows, each with what the row above it has."""
    ladder: dict[str, tuple[PipelineName, DispatchConfig]] = {
        "colocated": ("colocated", dispatch.RandomDispatch()),
        "skewness-aware": ("colocated", dispatch.LengthDispatch()),
        "disaggregated, streaming": ("stream", dispatch.LengthDispatch()),
        "asynchronous": ("async", dispatch.LengthDispatch()),
    }
    rates: dict[str, list[float]] = {name: [] for name in ladder}
    for seed in range(seeds):
        for name, (pipeline, policy) in ladder.items():
            rates[name].append(_outcome(job, pipeline, policy, seed).throughput)
        step()
    return {name: fmean(values) for name, values in rates.items()}


def _outcome(job: RolloutJob, pipeline: PipelineName, policy: DispatchConfig, seed: int) -> Outcome:
    workload = study.draw(job, job.simulation.iterations, seed)
    machines = study.setup(job, make_plan(job).allocation, pipeline)
    return simulate(pipeline, machines, workload.lengths, study.dispatcher(job, policy, workload))


def tables(results: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Tables of the experiments as (title, head, rows), without what the paper reports."""
    ladder = results["throughput"]
    return [
        (
            "Generation latency over Random-FIFO (figure 9)",
            ["simulated", "ranker", "oracle"],
            [[name, f"{row['ranker']:.3f}", f"{row['oracle']:.3f}"] for name, row in results["dispatch"].items()],
        ),
        (
            "Devices by algorithm 1 (figure 10)",
            ["interpolated", "generation", "training", "time"],
            [
                [name, str(row["generation"]), str(row["training"]), f"{row['seconds']:.2f}"]
                for name, row in results["allocation"].items()
            ],
        ),
        (
            "Throughput over cost, two datacentres over one (figure 12)",
            ["simulated", "one", "two", "ratio"],
            [
                [name, f"{row['single']:.3f}", f"{row['cross']:.3f}", f"{row['ratio']:.2f}"]
                for name, row in results["per_price"].items()
            ],
        ),
        (
            "Throughput (table 3)",
            ["simulated", "rows/s", "x colocated"],
            [[name, f"{value:.2f}", f"{value / ladder['colocated']:.2f}"] for name, value in ladder.items()],
        ),
    ]
