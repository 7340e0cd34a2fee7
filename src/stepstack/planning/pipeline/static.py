"""Static pipelines that a batch can be given to: the rivals of plans that know it. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from stepstack.planning.pipeline import baselines
from stepstack.planning.pipeline.baselines import Balance
from stepstack.planning.pipeline.graph import PipelineBatch, PipelinePlan
from stepstack.planning.pipeline.profile import PipelineProfile


def stages(profile: PipelineProfile, batch: PipelineBatch, ranks: int, most: int = 4) -> tuple[list[int], list[str]]:
    """Stages on a rank that the model and the batch allow, of 1, 2, 4 and so on up to ``most``, and why the others are
    left out: the model has too few layers, or the microbatches cannot be dealt in rounds."""
    layers, rounds = sum(module.layers for module in profile.modules), max(1, len(batch) // ranks)
    counts = [2**power for power in range(most.bit_length())]
    enough = [local for local in counts if layers >= ranks * local]
    why = [
        f"{local} stages on a rank: the model has {layers} layers for {ranks * local} stages"
        for local in counts
        if local not in enough
    ]
    if len(batch) % rounds and len(enough) > 1:
        why.insert(0, f"interleaved 1F1B: {len(batch)} microbatches do not divide into {rounds} rounds")
        enough = enough[:1]
    return enough, why


def family(
    profile: PipelineProfile,
    batch: PipelineBatch,
    ranks: int,
    balance: Balance = "time",
    sample: Sequence[PipelineBatch] = (),
    most: int = 4,
) -> dict[str, PipelinePlan]:
    """1F1B, interleaved where a rank has several ``stages``, by name."""
    found = {}
    for local in stages(profile, batch, ranks, most)[0]:
        chain = baselines.static_chain(profile, batch, ranks, local=local, balance=balance, sample=sample)
        order = baselines.one_f_one_b if local == 1 else baselines.interleaved
        found["1F1B" if local == 1 else f"interleaved 1F1B, {local} stages"] = order(chain)
    return found


def breadth_first(
    profile: PipelineProfile, batch: PipelineBatch, ranks: int, sample: Sequence[PipelineBatch] = ()
) -> dict[str, PipelinePlan]:
    """All forward passes before the first backward pass, as far as the model and the batch allow."""
    orders = {1: ("GPipe", baselines.gpipe), 2: ("LoopedBFS, 2 stages", baselines.looped_bfs)}
    return {
        orders[local][0]: orders[local][1](baselines.static_chain(profile, batch, ranks, local=local, sample=sample))
        for local in stages(profile, batch, ranks, most=2)[0]
    }


def zero_bubble(
    profile: PipelineProfile, batch: PipelineBatch, ranks: int, sample: Sequence[PipelineBatch] = ()
) -> dict[str, PipelinePlan]:
    """Published schedules with W apart, as far as the model has layers for them."""
    layers, found = sum(module.layers for module in profile.modules), {}
    if layers >= ranks:
        found["ZB-H1"] = baselines.zb_h1(baselines.static_chain(profile, batch, ranks, sample=sample))
    if layers >= 2 * ranks:
        chain = baselines.static_chain(profile, batch, ranks, local=2, placement="v", sample=sample)
        found["ZB-V"] = baselines.zb_v(chain)
    return found
