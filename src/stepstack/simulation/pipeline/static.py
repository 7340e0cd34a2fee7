"""Static pipelines that a batch can be given to: the rivals of plans that know it. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from stepstack.planning.pipeline import baselines
from stepstack.planning.pipeline.baselines import Balance
from stepstack.planning.pipeline.graph import PipelineBatch, PipelinePlan
from stepstack.planning.pipeline.profile import PipelineProfile


def family(
    profile: PipelineProfile,
    batch: PipelineBatch,
    ranks: int,
    balance: Balance = "time",
    sample: Sequence[PipelineBatch] = (),
    most: int = 4,
) -> dict[str, PipelinePlan]:
    """1F1B with 1, 2, 4 and so on up to ``most`` stages on a rank, by name; those for which the model has too few
    layers, or the batch a number of microbatches that cannot be dealt in rounds, are left out."""
    layers = sum(module.layers for module in profile.modules)
    found = {}
    for local in (2**power for power in range(most.bit_length())):
        if layers < ranks * local or (local > 1 and len(batch) % max(1, len(batch) // ranks)):
            continue
        chain = baselines.static_chain(profile, batch, ranks, local=local, balance=balance, sample=sample)
        order = baselines.one_f_one_b if local == 1 else baselines.interleaved
        found["1F1B" if local == 1 else f"interleaved 1F1B, {local} stages"] = order(chain)
    return found


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
