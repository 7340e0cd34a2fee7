"""Rollouts of all processes -> scored rows, shared out so that every process has about the same tokens."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

from stepstack.batching.rows import Batch, Row, chunk_of, owners
from stepstack.core.types import ProcessGroup
from stepstack.generation.types import Group, Rollout
from stepstack.records import Score
from stepstack.rl.reward import Reward

Scored = tuple[Rollout, Score]


def collect(
    world: ProcessGroup, groups: Sequence[Group], reward: Reward, *, seed: int, chunks: int
) -> tuple[Batch, dict[str, float]]:
    """Score this process's groups, gather everyone's, keep a balanced share. Also the step's rollout metrics."""
    scored = score_all(world, groups, reward)
    return shared_out(world, scored, seed=seed, chunks=chunks), summary(scored)


def score_all(world: ProcessGroup, groups: Sequence[Group], reward: Reward) -> list[Scored]:
    """Rollouts of all processes with their scores, by (problem's index, sample), so that neither the order in which
    groups ended nor the number of processes matters. Groups are keyed by problem index: two prompts of one text stay
    two groups."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    scored: list[Scored] = world.gather(list(zip(rollouts, reward(rollouts), strict=True)))
    return sorted(scored, key=lambda pair: (pair[0].problem.index, pair[0].sample))


def shared_out(world: ProcessGroup, scored: Sequence[Scored], *, seed: int, chunks: int) -> Batch:
    """This process's balanced share of the rows, which are numbered by their place in ``scored``."""
    trained = [(rollout, score) for rollout, score in scored if rollout.ids]  # no token, nothing to train on
    lengths = [len(r.prompt.ids) + len(r.ids) for r, _ in trained]
    owner = owners(lengths, chunk_of(len(trained), min(chunks, len(trained)), seed), world.processes)
    local = [index for index in range(len(trained)) if owner[index] == world.rank]
    rows = [Row.of(trained[index][0], trained[index][1].value, index) for index in local]
    return Batch(rows, len(trained), seed, scores_of(scored))


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
