"""`stepstack bench pipeline`: plans for each batch beside static pipelines, simulated, in paced time, and for real.

Simulated: PipeWeaver's 37B model, whose layer times are published, on batches whose mix of pictures drifts.

Paced: the executor, its messages and its gradients are real, with a tiny model on several processes, and every pass
takes the seconds of the 37B model. A batch full of pictures; the static pipelines are cut for 18 pictures a
microbatch.

Real: a larger tiny model on two processes, planned by a profile that was measured here, beside one process. No target:
two shared cores are no pipeline.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image

from evals.tables import bench_pipeline
from stepstack.batching.collate import TokenMicroBatch, collate
from stepstack.batching.rows import Row
from stepstack.loops.supervised import likelihood
from stepstack.models import chunks as cuts
from stepstack.models.lm import tiny
from stepstack.models.vision.policy import ImagePatcher, VisionPolicy
from stepstack.parallel import layer_times, link_times
from stepstack.parallel.pace import PassPace
from stepstack.parallel.pipeline import Pipeline
from stepstack.planning.pipeline import baselines, partition, static
from stepstack.planning.pipeline.bounds import lower_bound
from stepstack.planning.pipeline.graph import Action, PipelineBatch, PipelinePlan
from stepstack.planning.pipeline.profile import LayerProfile, ModuleProfile, PipelineProfile
from stepstack.planning.pipeline.search import LocalSearch, search
from stepstack.planning.pipeline.timeline import costs_of, timeline
from stepstack.report import jsonl
from stepstack.report.formats import render
from stepstack.report.provenance import provenance
from stepstack.simulation.pipeline import published, study

GROUP = 4.0  # pictures of the 37B model that one of the paced model stands for
PICTURES = (6, 12)  # of a microbatch that is paced
MEAN = 18.0  # pictures of the 37B model in the microbatches that static pipelines are cut for
MICROBATCHES = 8
LAYERS = 32  # of each module of the paced model, for 64 of the published one
SCALE = {4: 3.0, 2: 2.0}  # of the seconds, by ranks: real work must be short beside them
SIDE, PATCH = 8, 4  # pixels of a picture and of a patch: as little real work as can be
SEGMENTS, MOST = {"vision": 1, "text": 2}, {"vision": 3}
WORDS = tiny.tokenizer(special=(*tiny.CHAT, *tiny.VISION))
PATIENCE = timedelta(seconds=120)
MODES = ("static", "planned", "planned, W apart")
BESIDE = bench_pipeline.BESIDE  # the plan without W apart, while each rank searches the next batch's


def measure(rounds: int = 3, evaluations: int = 64) -> dict[str, Any]:
    """All figures. ``rounds``: times that each plan is carried out; the median counts. ``evaluations``: orders that a
    search tries."""
    torch.set_num_threads(1)
    options = LocalSearch(evaluations=evaluations)
    figures = {
        "simulated": simulated(options),
        "paced": [row for ranks in (4, 2) for row in paced(ranks, rounds, options)],
        "real": real(rounds, options),
    }
    return {"bench": "pipeline", "rounds": rounds, "evaluations": evaluations} | figures | {"provenance": provenance()}


def show(figures: Mapping[str, Any]) -> None:
    """Print the tables of the page."""
    print(render(bench_pipeline.tables_of(figures), "md"), end="")


# -- simulated ------------------------------------------------------------------------------------------------------


def simulated(options: LocalSearch) -> dict[str, Any]:
    """Studies of the 37B model: drifting mixes with two cuts, single mixes, caps, and one large batch."""
    profile = published.profile("37b")
    sample = study.drawn(study.DRIFT, 8)
    segments, most = partition.searched(profile, sample, 4, "always")
    given, found = study.ModelCut.of(profile, 4, SEGMENTS, {"vision": 6}), study.ModelCut.of(profile, 4, segments, most)
    return {
        "drift": {str(many): study.drift(profile, given, many, options) for many in (8, 16)},
        "drift, cut by search": {str(many): study.drift(profile, found, many, options) for many in (8, 16)},
        "searched cut": {"segments": segments, "most": most},
        "mixes": study.mixes(profile, given, 8, options),
        "memory": [asdict(one) for one in study.memory_sweep(profile, sample, given)],
        "large": large(profile, options),
        "ablation": ablation(options),
        "models": [asdict(one) for one in published.models(replace(options, evaluations=8))],
    }


def large(profile: PipelineProfile, options: LocalSearch) -> dict[str, float]:
    """64 microbatches on 16 ranks with W apart: the gap to the bound, and the time that the plan took."""
    [batch] = study.drawn([(0, 32)], 64)
    graph = study.ModelCut.of(profile, 16, SEGMENTS, {"vision": 12}).graph(profile, batch, split=True)
    began, cpu = time.perf_counter(), time.process_time()
    plan = search(graph, profile, replace(options, evaluations=32))
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    gap = timeline(plan, profile).makespan / lower_bound(graph, profile) - 1
    return {"actions": len(graph.actions), "gap": gap, "seconds": seconds, "cpu": cpu, "evaluations": 32}


def ablation(options: LocalSearch) -> dict[str, float]:
    """The planner part by part on VLM-S, cut by the paper's rule."""
    profile, batches = published.profile("vlm-s"), study.drawn(study.DRIFT, 8)
    return study.ablation(profile, batches, published.cut(profile, batches, 4), options)


# -- paced ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Noise:
    """A small picture of noise; another number is another picture."""

    number: int
    side: int = SIDE

    def image(self) -> Image.Image:
        drawn = np.random.default_rng(self.number).integers(0, 256, (self.side, self.side, 3), dtype=np.uint8)
        return Image.fromarray(drawn)


@dataclass(frozen=True)
class Task:
    """Work of every process: plans by name, each ``rounds`` times, for microbatches of so many pictures.
    ``seconds``: those of passes where they are paced. ``beside``: what a thread of each rank does during a step, and
    the step then waits for."""

    plans: Mapping[str, PipelinePlan]
    pictures: Sequence[int]
    rounds: int
    seconds: Mapping[str, Mapping[Action, float]]
    shape: Mapping[str, int]
    side: int = SIDE
    beside: Mapping[str, Callable[[], PipelinePlan]] = field(default_factory=dict)


def paced(ranks: int, rounds: int, options: LocalSearch) -> list[dict[str, Any]]:
    """Seconds of a batch full of pictures by the best static pipeline and by plans, simulated and carried out."""
    profile = relayered(published.profile("37b"), LAYERS, SCALE[ranks])
    rng = random.Random(study.SEED)
    pictures = [rng.randint(*PICTURES) for _ in range(MICROBATCHES)]
    batch: PipelineBatch = [{"text": [8192.0], "vision": [GROUP] * count} for count in pictures]
    plans = dict(zip(MODES, planned(profile, batch, ranks, options), strict=True))
    plans[BESIDE] = plans["planned"]
    beside = {BESIDE: partial(search, plans[BESIDE].graph, profile, options)}
    seconds = {name: pass_seconds(plan, profile) for name, plan in plans.items()}
    shape = {"hidden": 16, "intermediate": 32, "tower": 16, "layers": LAYERS, "depth": LAYERS}
    carried_out = in_processes(ranks, Task(plans, pictures, rounds, seconds, shape, beside=beside))
    return [
        {"ranks": ranks, "name": name, "simulated": timeline(plan, profile).makespan} | carried_out[name]
        for name, plan in plans.items()
    ]


def planned(profile: PipelineProfile, batch: PipelineBatch, ranks: int, options: LocalSearch) -> list[PipelinePlan]:
    """The best static pipeline for the mean mix, a plan, and one with W apart."""
    mean: PipelineBatch = [{"text": [8192.0], "vision": [MEAN]}] * len(batch)
    family = static.family(profile, batch, ranks, sample=[mean])
    best = min(family.values(), key=lambda plan: timeline(plan, profile).makespan)
    cut = study.ModelCut.of(profile, ranks, SEGMENTS, MOST)
    return [best, *(search(cut.graph(profile, batch, split), profile, options) for split in (False, True))]


def relayered(profile: PipelineProfile, layers: int, scale: float = 1.0) -> PipelineProfile:
    """The same model in fewer layers, each of which costs as much more, and ``scale`` times that."""

    def thicker(module: ModuleProfile) -> ModuleProfile:
        factor = scale * module.layers / layers
        times = {key: tuple(value * factor for value in values) for key, values in asdict(module.layer).items()}
        layer = LayerProfile(**(times | {"sizes": module.layer.sizes}))
        return replace(module, layers=layers, layer=layer)

    return replace(profile, modules=tuple(map(thicker, profile.modules)))


def pass_seconds(plan: PipelinePlan, profile: PipelineProfile) -> dict[Action, float]:
    """Seconds of each pass of a plan."""
    costs = costs_of(plan.graph, profile)
    return {a: costs[a.chunk, a.part].seconds(a.kind) for actions in plan.order for a in actions}


# -- processes ------------------------------------------------------------------------------------------------------


def in_processes(ranks: int, task: Task) -> dict[str, dict[str, Any]]:
    """Seconds of each round of each plan, and the passes that were late, of all ranks."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, (folder, ranks, task), nprocs=ranks)
        parts = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(ranks)]
    return {
        name: {
            "seconds": [max(values) for values in zip(*(part[name]["seconds"] for part in parts), strict=True)],
            "overruns": sum(part[name]["overruns"] for part in parts),
            "late": sum(part[name]["late"] for part in parts),
            "passes": sum(part[name]["passes"] for part in parts),
        }
        for name in task.plans
    }


def _rank(rank: int, folder: str, ranks: int, task: Task) -> None:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks, timeout=PATIENCE)
    found = {name: _carry_out(rank, name, task) for name in task.plans}
    jsonl.write_json_atomic(Path(folder) / f"{rank}.json", found)
    dist.barrier()
    dist.destroy_process_group()


def _carry_out(rank: int, name: str, task: Task) -> dict[str, Any]:
    """A plan ``rounds`` times, after once that connects and does not count."""
    plan, whole = task.plans[name], policy(task.shape)
    micros = batch_of(whole, task.pictures, task.side)
    pipeline = Pipeline(cuts.cut(whole, plan.graph.chunks, rank), timeout=PATIENCE.total_seconds())
    times = task.seconds.get(name)
    pace = None if times is None else PassPace(times.__getitem__)
    seconds = []
    with ThreadPoolExecutor(1) as thread:
        for turn in range(task.rounds + 1):
            dist.barrier()
            began = time.perf_counter()
            ahead = [thread.submit(task.beside[name])] if name in task.beside else []
            pipeline.step(plan, micros, likelihood, 1e-3, pace=pace if turn else None)
            for future in ahead:
                future.result()
            seconds.append(time.perf_counter() - began)
            pipeline.reduce_gradients()
    counts = {"overruns": 0, "late": 0.0} if pace is None else {"overruns": pace.overruns, "late": pace.late}
    return {"seconds": seconds[1:], "passes": task.rounds * len(plan.order[rank])} | counts


def policy(shape: Mapping[str, int]) -> VisionPolicy:
    """A tiny Qwen2.5-VL."""
    lm = tiny.qwen2_5_vl(WORDS, patch=PATCH, seed=0, max_length=4096, **shape)
    return VisionPolicy(lm, ImagePatcher(tiny.image_processor(PATCH)), [])


def batch_of(model: VisionPolicy, pictures: Sequence[int], side: int) -> list[TokenMicroBatch]:
    """A microbatch of one row for each number of pictures."""
    start, end, image, _ = (WORDS.get_vocab()[name] for name in tiny.VISION)
    made = []
    for number, count in enumerate(pictures):
        shown = tuple(Noise(100 * number + at, side) for at in range(count))
        seen = [start, *[image] * model.patcher.tokens((side, side)), end] * count
        made.append(collate([Row(number, (10, *seen), tuple(range(20, 32)), pictures=shown)], True, "cpu"))
    return made


# -- real -----------------------------------------------------------------------------------------------------------


def real(rounds: int, options: LocalSearch) -> dict[str, Any]:
    """Two processes, planned by a profile of this machine, beside one: medians of seconds, simulated ones too."""
    shape = {"hidden": 192, "intermediate": 512, "tower": 192, "layers": 8, "depth": 8}
    side, pictures = 32, [2, 0, 6, 4, 1, 5, 3, 3]
    model = policy(shape)
    micros = batch_of(model, pictures, side)
    sizes = layer_times.Sizes((64, 256, 512), (1, 4, 8), (side, side))
    profile = layer_times.measure(model.lm, sizes, torch.device("cpu"), link=link_times.measure())
    batch: PipelineBatch = [{k: v for k, v in cuts.item_sizes(model, micro).items() if v} for micro in micros]
    plan = search(
        study.ModelCut.of(profile, 2, {"vision": 1, "text": 2}, {"vision": 4}).graph(profile, batch), profile, options
    )
    still = baselines.interleaved(baselines.static_chain(profile, batch, 2, local=2))
    plans = {"static": still, "planned": plan}
    found = in_processes(2, Task(plans, pictures, rounds, {}, shape, side))
    alone = [_alone(model, micros) for _ in range(rounds + 1)][1:]
    rows = [
        {"name": name, "simulated": timeline(one, profile).makespan, "seconds": found[name]["seconds"]}
        for name, one in plans.items()
    ]
    return {"one process": alone, "rows": rows, "profile": profile.device}


def _alone(model: VisionPolicy, micros: Sequence[TokenMicroBatch]) -> float:
    began = time.perf_counter()
    for micro in micros:
        (likelihood(model, micro).total * 1e-3).backward()
    return time.perf_counter() - began
