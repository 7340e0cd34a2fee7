"""The curves of a chat run."""

from __future__ import annotations

from pathlib import Path

from stepstack.harness.training import outcome

# Title -> the metrics drawn together. A falling winner is what surprises most about DPO: winners and losers are apart.
CURVES = {
    "Loss": ("loss", "eval/loss"),
    "Log-probability of winners and losers, nats per answer": ("policy/chosen_logp", "policy/rejected_logp"),
    "The same of held-out pairs": ("eval/chosen_logp", "eval/rejected_logp"),
    "Rewards of winners and losers": ("policy/chosen_reward", "policy/rejected_reward"),
    "Winners above losers": ("policy/right", "eval/right"),
    "Held-out questions answered right": ("eval/accuracy",),
    "Entropy, nats per token": ("policy/entropy",),
    "Gradient norm": ("policy/grad_norm",),
    "Learning rate": ("policy/lr",),
    "Throughput, tokens/s": ("tokens_per_s",),
}


def write_report(folder: Path) -> Path:
    """runs/<name>/report.html from what stands in the folder; that of a first stage is beside it."""
    first = folder / "sft"
    if (first / "config.json").is_file():
        outcome.write(first, CURVES)
    return outcome.write(folder, CURVES)
