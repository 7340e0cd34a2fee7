"""Whether sequences of one forward stay apart in a model: not every family of transformers heeds where a row begins, or
a mask."""

from __future__ import annotations

import torch

from stepstack.batching.collate import collate_shared
from stepstack.batching.config import BatchLayout
from stepstack.batching.rows import Row
from stepstack.batching.shared import Siblings
from stepstack.config import ConfigError
from stepstack.core.run import Run
from stepstack.core.trainable import Trainable

MOST = 1e-3  # of a log-probability; what the row in front says has no part in any number of the one behind it
LENGTH = 6  # tokens of a row


@torch.no_grad()
def refuse_leaks(run: Run, policy: Trainable, layout: BatchLayout) -> None:
    """ConfigError where layout.pack=true or layout.share_prompts=true, and what a row says of its tokens depends on the
    row in front of it. A state that is carried on, as of linear attention, or a mask that is made without position_ids
    trains on other rows' context without an error. Two short forwards for each; every process calls it."""
    training = policy.module.training
    policy.module.eval()
    for key, asked in (("pack", layout.pack), ("share_prompts", layout.share_prompts)):
        apart = _apart(run, policy, shared=key == "share_prompts") if asked else 0.0
        if not apart <= MOST:
            raise ConfigError(
                f"layout.{key}=true: {policy.unwrapped.config.model_type} lets a row see the one in front of it "
                f"(log-probabilities differ by {apart:.2g}): set layout.{key}=false"
            )
    policy.module.train(training)


def _apart(run: Run, policy: Trainable, shared: bool) -> float:
    """Largest difference between a row's log-probabilities behind one row and behind another."""
    size = policy.unwrapped.config.get_text_config().vocab_size
    prompt, behind = (3 % size,), tuple((1 + 5 * place) % size for place in range(LENGTH))
    found = []
    for offset in (0, 3):
        front = tuple((offset + 7 * place) % size for place in range(LENGTH))
        rows = Row(0, prompt, front), Row(1, prompt, behind)
        micro = collate_shared(
            [Siblings(rows)] if shared else [Siblings((row,)) for row in rows], not shared, run.device
        )
        with run.accelerator.autocast():
            logp_N, *_ = policy.module(**micro.inputs())
        found.append(logp_N[LENGTH:].float())
    return float((found[0] - found[1]).abs().max())
