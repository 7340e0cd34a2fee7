"""The metrics of a run in words: which are drawn together, in what unit, what is a good and what a bad sign.

No torch. The order is that of the page. A metric that stands in no chart and not in ``OTHER`` is a gap, which the tests
of the recipes find.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True, slots=True)
class ChartText:
    """Words of one chart. ``metrics``: names in metrics.jsonl, or patterns with ``*``. ``expect`` and ``bad_sign``: a
    sentence each. ``stacked``: whether the metrics are parts of a sum, drawn above each other."""

    title: str
    unit: str
    metrics: tuple[str, ...]
    expect: str
    bad_sign: str
    stacked: bool = False


CHARTS: tuple[ChartText, ...] = (
    ChartText(
        "Held-out score",
        "first figure of the selection set",
        ("eval/accuracy",),
        "Rises and levels off; it is measured on questions that are never trained on.",
        "It falls while the reward rises: the reward is gamed, or the training questions are learned by heart.",
    ),
    ChartText(
        "Reward",
        "mean of the step's rollouts",
        ("reward", "reward_greedy", "pass_at_n"),
        "Rises with noise; pass_at_n, the share of prompts with one rewarded sample or more, stays above it.",
        "It stays at 0 (nothing to learn from), falls for many steps, or jumps up without the held-out score.",
    ),
    ChartText(
        "Parts of the reward",
        "mean of the step's rollouts",
        ("reward/*",),
        "Easy parts such as the format rise first, the part that is the task later.",
        "A part that costs nothing rises while the task's own part falls; the grader has errors or time-outs.",
    ),
    ChartText(
        "Loss",
        "nats per token, or the loss of the stage",
        ("loss", "eval/loss"),
        "Falls fast, then slowly; DPO begins at ln 2 = 0.69. The held-out loss follows the training loss.",
        "It rises for many steps, becomes NaN, or the held-out loss turns upwards while the other falls: overfitting.",
    ),
    ChartText(
        "Response length",
        "tokens",
        ("length", "length_rewarded", "length_unrewarded", "eval/length"),
        "Moves slowly; longer answers are a good sign where they are the ones that are rewarded.",
        "It runs to the limit of tokens, or collapses to a few tokens.",
    ),
    ChartText(
        "Entropy",
        "nats per token",
        ("actor/entropy", "policy/entropy"),
        "Falls slowly as the model becomes surer of itself, and stays above 0.",
        "It drops to 0 within a few steps (no exploration is left), or rises without end (the model turns to noise).",
    ),
    ChartText(
        "KL of an update",
        "nats per token",
        ("actor/kl", "actor/ref_kl", "actor/mismatch_kl"),
        "Small and steady; kl is how far one step moves the policy, ref_kl how far it is from the reference model.",
        "Spikes, or steady growth: the learning rate is too high. mismatch_kl above 0.01: see the sampler's chart.",
    ),
    ChartText(
        "Clipped tokens",
        "share",
        ("actor/clip_fraction",),
        "Near 0 with one update a step, up to some 0.2 with several.",
        "Above 0.3: updates go further than the clipping allows; lower the learning rate or the number of updates.",
    ),
    ChartText(
        "Sampler against trainer",
        "difference of log-probabilities, nats",
        ("actor/mismatch", "actor/mismatch_max"),
        "Mean near 0: the sampler and the trainer compute the same model. The largest single difference is noisier.",
        "The mean grows: stale weights, another precision, or a sampler that cuts the distribution.",
    ),
    ChartText(
        "Largest ratio of an update",
        "ratio of probabilities",
        ("actor/ratio_max",),
        "Between 1 and some tens.",
        "Thousands: single tokens dominate the update.",
    ),
    ChartText(
        "Explained variance of the critic",
        "1 is perfect",
        ("critic/explained_variance",),
        "Rises from 0 or below towards 1 as the critic learns which answers succeed.",
        "Below 0 after the first steps: the critic is worse than a constant.",
    ),
    ChartText(
        "Losses of actor and critic",
        "",
        ("actor/loss", "critic/loss"),
        "The actor's loss swings about 0 and says little; the critic's falls.",
        "The critic's loss grows, or either becomes NaN.",
    ),
    ChartText(
        "Value of the critic",
        "mean prediction of the return",
        ("critic/value",),
        "Follows the reward.",
        "It goes far from what rewards can be.",
    ),
    ChartText(
        "Truncated, without signal",
        "share",
        ("truncated", "eval/truncated", "frac_zero_std"),
        "Few responses are cut off; groups whose samples all score alike (frac_zero_std) become more as it learns.",
        "Truncation grows with the length; frac_zero_std near 1: the prompts are too easy or too hard to learn from.",
    ),
    ChartText(
        "Rollouts that are trained on",
        "share of the sampled ones",
        ("trained_fraction",),
        "1 with a critic; without one it falls as it learns, since groups whose samples score alike have no gradient.",
        "Near 0: almost all sampling is for nothing; take harder prompts, or dynamic sampling.",
    ),
    ChartText(
        "Calls of the tool",
        "per response",
        ("tool/calls", "tool/tokens"),
        "Calls rise where they help; tokens are those that the tool wrote, which are never learned.",
        "Calls rise to their limit without the reward: the policy calls for nothing.",
    ),
    ChartText(
        "Failed calls",
        "share of the calls",
        ("tool/failed",),
        "Falls early: the policy learns what the tool can read.",
        "It stays high: the tool is slow, or its marks are none that the tokenizer keeps apart.",
    ),
    ChartText(
        "Log-probability of winners and losers",
        "nats per answer",
        ("policy/chosen_logp", "policy/rejected_logp", "eval/chosen_logp", "eval/rejected_logp"),
        "Losers fall more than winners; winners often fall a little too, which surprises most about DPO.",
        "Winners fall as fast as losers: the model forgets how to answer at all; raise beta, or add the SFT loss.",
    ),
    ChartText(
        "Rewards of winners and losers",
        "beta x log-ratio to the reference",
        ("policy/chosen_reward", "policy/rejected_reward", "policy/margin"),
        "Both begin at 0 and part: the margin grows.",
        "The margin stays at 0 (nothing is learned) or explodes while the held-out order does not improve.",
    ),
    ChartText(
        "Winners above losers",
        "share of pairs",
        ("policy/right", "eval/right", "dit/right"),
        "Begins near one half and rises; held-out pairs follow.",
        "Training pairs reach 1 and held-out ones do not rise: overfitting.",
    ),
    ChartText(
        "Largest log-ratio",
        "nats per answer",
        ("policy/log_ratio_abs_max", "dit/log_ratio_abs_max"),
        "Exactly 0 before the first update, then grows slowly.",
        "Not 0 at the start: the reference is another model. Hundreds: single pairs dominate.",
    ),
    ChartText(
        "Distillation",
        "nats per token",
        ("policy/nll", "policy/divergence"),
        "Both fall: the student says what the teacher said, and becomes as sure of it.",
        "The divergence stays where it began: teacher and student do not share their tokens.",
    ),
    ChartText(
        "Score of summaries",
        "0 to 1, selection set",
        ("eval/match", "eval/ts", "eval/is", "eval/parse"),
        "Parse, the share that can be read, is high early; match (figures), ts (text) and is (images) rise after.",
        "Parse falls in the second stage: preference tuning breaks the form.",
    ),
    ChartText(
        "Track error",
        "pixels, selection set",
        ("eval/error",),
        "Falls below one pixel as forms move along the path that was asked for.",
        "It stays at the distance of a clip that does not move.",
    ),
    ChartText(
        "Colour kept",
        "share, selection set",
        ("eval/colour",),
        "Rises to 1: the form keeps its colour from the first frame to the last.",
        "It falls late in training: the averaged weights drift.",
    ),
    ChartText(
        "PSNR of pictures",
        "dB, selection set: whole clips through the VAE, then the first frame of generated ones",
        ("eval/psnr", "eval/clip_psnr"),
        "Rises while the VAE learns; that of the first frame then rises to what the VAE can reconstruct.",
        "That of the first frame stays low: the condition on it is not used.",
    ),
    ChartText(
        "Parts of the VAE's loss",
        "per value",
        ("vae/squared", "vae/absolute", "vae/features"),
        "Squared and absolute error fall together.",
        "One of them levels off early: the latents are too few or the KL weighs too much.",
    ),
    ChartText(
        "KL of the VAE",
        "nats per value",
        ("vae/kl",),
        "Rises at first, as latents begin to carry something, then levels off.",
        "It falls to 0: the latents carry nothing.",
    ),
    ChartText(
        "Sparse attention by block",
        "share",
        ("dsv/stage", "dsv/sparsity*", "dsv/recall*", "dsv/mass*", "dsv/sparse*"),
        "Recall and mass, what the chosen keys hold of the attention, stay high in stage 2; sparsity is what is saved.",
        "Recall falls after the switch to stage 2: the predictors no longer know where the attention lies.",
    ),
    ChartText(
        "Predictors of sparse attention",
        "loss by block",
        ("dsv/loss*",),
        "Falls before stage 2 begins.",
        "It does not fall: stage 2 is not reached.",
    ),
    ChartText(
        "Gradient norm",
        "before clipping",
        ("*/grad_norm",),
        "Settles after the first steps, with noise.",
        "Spikes that do not go away, growth without end, or 0.",
    ),
    ChartText(
        "Learning rate",
        "",
        ("*/lr", "lr"),
        "The warm-up and the decay that the config asks for.",
        "It is 0 long before the end, or never leaves the warm-up.",
    ),
    ChartText(
        "Throughput",
        "tokens/s",
        ("tokens_per_s",),
        "Level; lower where responses are short, since other work then weighs more.",
        "It falls step by step: memory, a slow disk, or a process that others wait for.",
    ),
    ChartText(
        "Where a step's seconds go",
        "seconds",
        ("time/*",),
        "Rollouts take most of an RL step, the update most of another; evaluation and saves are peaks.",
        "A band that grows; wide 'other': time that no phase accounts for.",
        stacked=True,
    ),
    ChartText(
        "MFU",
        "share of the device's peak",
        ("mfu",),
        "Level.",
        "Far below the same model's figure on the same device: micro-batches are too small.",
    ),
    ChartText(
        "Memory",
        "GiB, process 0",
        ("memory_gib",),
        "A peak that stands after a few steps.",
        "It grows step by step: something is kept that should not be.",
    ),
    ChartText(
        "Weights' age",
        "steps between sampling and training",
        ("stream/lag",),
        "Stays at the config's staleness or below.",
        "Above it: rollouts are trained on later than the config allows.",
    ),
    ChartText(
        "Idle workers",
        "share of their time",
        ("stream/worker_idle",),
        "Low where generation is the bottleneck, high where training is.",
        "High while the trainer waits too: units of work are too large to be shared out.",
    ),
    ChartText(
        "Groups in the buffer",
        "count",
        ("stream/ended", "stream/waiting"),
        "A few ended groups wait for the trainer.",
        "Ended groups pile up: sampling is faster than training and its rollouts grow old.",
    ),
    ChartText(
        "Publishing weights",
        "seconds until they are ready",
        ("stream/publish_s",),
        "Short against a step.",
        "As long as a step: every step waits for it.",
    ),
    ChartText(
        "Lost and repeated work",
        "count since the start",
        ("stream/redispatched", "stream/late", "stream/lost_workers", "stream/refused"),
        "Flat at 0.",
        "Steps upwards: workers die or are slow; their log says why.",
    ),
    ChartText(
        "Pipeline",
        "share of idle time; seconds to plan",
        ("pipeline/bubble", "pipeline/plan_s"),
        "The bubble is small and steady; planning takes less time than the batch before it.",
        "The bubble grows with the mix of lengths: the plan's costs are not those of this machine.",
    ),
    ChartText(
        "CPU seconds of a step",
        "CPU-s, process 0, all threads",
        ("cpu_s",),
        "Level.",
        "Far above the seconds of a step: more threads run than the config asks for.",
    ),
    ChartText(
        "Skipped updates",
        "count since the start",
        ("*/skipped", "checkpoint_fallbacks", "dsv/skipped"),
        "Flat at 0.",
        "Any step upwards: gradients that are not finite, or torn checkpoints.",
    ),
)

# Counts and sums that other charts say better, drawn under "other metrics".
OTHER = (
    "tokens",
    "prompts",
    "actor/old_from_sampler",
    "actor/old_mismatch_max",
    "length_max",
    "*/updates",
    "eval/stderr",
    "policy/loss",
    "dit/loss",
    "vae/loss",
    "critic/*_max",
    "stream/workers",
    "stream/sent_mb",
    "pipeline/microbatches",
    "params",
    "batch",
)
HIDDEN = ("step", "time/step")  # the axis, and the sum of the bands


def grouped(names: Iterable[str]) -> list[tuple[ChartText, list[str]]]:
    """The charts that have any of the metrics, each with those that it draws: the first chart that names it has it."""
    left = [name for name in dict.fromkeys(names) if name not in HIDDEN]
    groups = []
    for chart in CHARTS:
        own = [name for pattern in chart.metrics for name in left if fnmatchcase(name, pattern)]
        own = list(dict.fromkeys(own))
        left = [name for name in left if name not in own]
        if own:
            groups.append((chart, own))
    return groups


def others(names: Iterable[str]) -> list[str]:
    """Metrics that no chart names."""
    names = list(names)
    drawn = {name for _, group in grouped(names) for name in group}
    return [name for name in dict.fromkeys(names) if name not in drawn and name not in HIDDEN]


def gaps(names: Sequence[str]) -> list[str]:
    """Metrics that no chart names and that nobody left out on purpose."""
    return [name for name in others(names) if not any(fnmatchcase(name, pattern) for pattern in OTHER)]
