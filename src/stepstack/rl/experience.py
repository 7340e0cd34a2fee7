"""Rollouts of all processes -> scored rows, shared out so that every process has about the same tokens."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from types import MappingProxyType

from stepstack.batching.rows import Batch, Row, chunk_of, owners
from stepstack.core.types import ProcessGroup
from stepstack.generation.types import Group, Rollout
from stepstack.records import Score
from stepstack.rl.advantage import group_advantages
from stepstack.rl.config import Gae, PpoConfig, ReinforcePlusPlus
from stepstack.rl.reward import Reward

Scored = tuple[Rollout, Score]


def collect(
    world: ProcessGroup,
    cfg: PpoConfig,
    scored: Sequence[Scored],
    *,
    seed: int,
    greedy: Sequence[Scored] = (),
) -> tuple[Batch, dict[str, float]]:
    """This process's balanced share of a step's batch, and metrics of all that was sampled for it. The scores of
    ``greedy``, one response of each prompt, are baselines."""
    metrics = summary(scored)
    baselines = {index: score for index, [score] in scores_of(greedy).items()}
    if baselines:
        metrics["reward_greedy"] = fmean(baselines.values())
    batch = shared_out(world, cfg, chosen(scored, cfg.rollout.prompts, seed), seed=seed, baselines=baselines)
    batch.sampled = len(scored)
    return batch, metrics


def with_signal(scored: Sequence[Scored]) -> list[int]:
    """Problem indices of the groups whose scores are not all equal."""
    return [index for index, values in scores_of(scored).items() if len(set(values)) > 1]


def chosen(scored: Sequence[Scored], count: int, seed: int) -> list[Scored]:
    """Rollouts of ``count`` groups, in the order of ``score_all``: a seeded choice of those with signal, and of others
    where these are too few."""
    signal = set(with_signal(scored))
    indices = sorted(scores_of(scored))
    random.Random(seed).shuffle(indices)
    kept = set(sorted(indices, key=lambda index: index not in signal)[:count])
    return in_order(pair for pair in scored if pair[0].problem.index in kept)


def score_all(world: ProcessGroup, groups: Sequence[Group], reward: Reward) -> list[Scored]:
    """Rollouts of all processes with their scores, by (problem's index, sample), so that neither the order in which
    groups ended nor the number of processes matters. Groups are keyed by problem index: two prompts of one text stay
    two groups."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    return in_order(world.gather(list(zip(rollouts, reward(rollouts), strict=True))))


def in_order(scored: Iterable[Scored]) -> list[Scored]:
    """Sorted by (problem's index, sample)."""
    return sorted(scored, key=lambda pair: (pair[0].problem.index, pair[0].sample))


def shared_out(
    world: ProcessGroup,
    cfg: PpoConfig,
    scored: Sequence[Scored],
    *,
    seed: int,
    baselines: Mapping[int, float] = MappingProxyType({}),
) -> Batch:
    """This process's balanced share of the rows, which are numbered by their place in ``scored``. A row that will not
    be trained on counts as one token, so that every process has about the same work and some row. Where the layout
    shares prompts, rows of one prompt and mini-batch stay together; ValueError for fewer of these than processes."""
    scores = scores_of(scored)
    present = [(rollout, score) for rollout, score in scored if rollout.ids]  # no token, nothing to train on
    learns = [True] * len(present)
    if cfg.skips_zero_advantages:
        assert not isinstance(cfg.advantage, Gae | ReinforcePlusPlus)
        advantages = group_advantages(scores, cfg.advantage, baselines)
        learns = [bool(advantages[r.problem.index][r.sample]) for r, _ in present]
    together: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, chunk in enumerate(chunk_of(len(present), min(cfg.updates, len(present)), seed)):
        together[chunk, present[index][0].problem.index if cfg.layout.share_prompts else index].append(index)
    if cfg.layout.share_prompts and len(together) < world.processes:
        raise ValueError(
            f"layout.share_prompts keeps rollouts of a prompt on one process: {len(together)} prompts are too few for "
            f"{world.processes} processes: raise rollout.prompts, or set it to false"
        )
    lengths = [_work([present[i][0] for i in unit], [learns[i] for i in unit]) for unit in together.values()]
    owner = owners(lengths, [chunk for chunk, _ in together], world.processes)
    local = sorted(i for unit, at in zip(together.values(), owner, strict=True) if at == world.rank for i in unit)
    rows = [Row.of(present[index][0], present[index][1].value, index) for index in local]
    return Batch(rows, len(present), seed, scores, len(scored), dict(baselines))


def _work(rollouts: Sequence[Rollout], learns: Sequence[bool]) -> int:
    """Tokens of rollouts of one prompt that go through the model, one for each that does not."""
    prompt = len(rollouts[0].prompt.ids) if any(learns) else 0
    return prompt + sum(len(r.ids) if learned else 1 for r, learned in zip(rollouts, learns, strict=True))


def scores_of(scored: Sequence[Scored]) -> dict[int, list[float]]:
    """Scores by problem index."""
    scores: dict[int, list[float]] = defaultdict(list)
    for rollout, score in scored:
        scores[rollout.problem.index].append(score.value)
    return dict(scores)


def summary(scored: Sequence[Scored]) -> dict[str, float]:
    """Figures of a step's rollouts, over all processes."""
    scores = scores_of(scored)
    lengths = [len(rollout.ids) for rollout, _ in scored]
    parts: dict[str, list[float]] = defaultdict(list)
    for _, score in scored:
        for name, value in score.parts.items():
            parts[name].append(value)
    by_success: dict[bool, list[int]] = {True: [], False: []}
    for (_, score), length in zip(scored, lengths, strict=True):
        by_success[score.value > 0].append(length)
    out = {
        "reward": fmean(score.value for _, score in scored),
        "length": fmean(lengths),
        "length_max": float(max(lengths)),
        "tokens": float(sum(lengths)),
        "truncated": fmean(rollout.finish == "length" for rollout, _ in scored),
        "frac_zero_std": fmean(len(set(values)) == 1 for values in scores.values()),
        "prompts": float(len(scores)),
        "pass_at_n": fmean(max(values) > 0 for values in scores.values()),
        **{f"reward/{name}": fmean(values) for name, values in parts.items()},
    }
    if any(rollout.calls for rollout, _ in scored):
        calls = [call for rollout, _ in scored for call in rollout.calls]
        out["tool/calls"] = len(calls) / len(scored)
        out["tool/failed"] = fmean(not call.succeeded for call in calls)
        out["tool/tokens"] = sum(call.end - call.begin for call in calls) / len(scored)
    for success, name in ((True, "length_rewarded"), (False, "length_unrewarded")):
        if by_success[success]:
            out[name] = fmean(by_success[success])
    return out
