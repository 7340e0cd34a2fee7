"""The curves of an ORZ run."""

from __future__ import annotations

from pathlib import Path

from stepstack.harness.training import outcome

# Title -> the metrics drawn together.
CURVES = {
    "Reward (rollouts)": ("reward", "pass_at_n"),
    "Accuracy (held out, selection set)": ("eval/accuracy",),
    "Response length, tokens": ("length", "length_rewarded", "length_unrewarded", "eval/length"),
    "Entropy, nats per token": ("actor/entropy",),
    "KL of an update, nats per token": ("actor/kl",),
    "Clip fraction": ("actor/clip_fraction",),
    "Explained variance of the critic": ("critic/explained_variance",),
    "Losses": ("actor/loss", "critic/loss"),
    "Gradient norm": ("actor/grad_norm", "critic/grad_norm"),
    "Sampler against trainer log-probability": ("actor/mismatch", "actor/mismatch_max"),
    "Truncated rollouts, groups without signal": ("truncated", "frac_zero_std"),
    "Throughput, tokens/s": ("tokens_per_s",),
}


def write_report(folder: Path) -> Path:
    """runs/<name>/report.html from what stands in the folder."""
    return outcome.write(folder, CURVES)
