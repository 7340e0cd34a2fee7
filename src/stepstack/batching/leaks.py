"""Whether packed rows stay apart in a model: not every family of transformers heeds where a row begins."""

from __future__ import annotations

import torch

from stepstack.batching.collate import collate
from stepstack.batching.config import BatchLayout
from stepstack.batching.rows import Row
from stepstack.config import ConfigError
from stepstack.core.run import Run
from stepstack.core.trainable import Trainable

MOST = 1e-3  # of a log-probability; what the row in front says has no part in any number of the one behind it
LENGTH = 6  # tokens of a row


@torch.no_grad()
def refuse_leaks(run: Run, policy: Trainable, layout: BatchLayout) -> None:
    """ConfigError where layout.pack=true, and what a row says of its tokens depends on the row in front of it. A state
    that is carried on, as of linear attention, or a mask that is made without position_ids trains on other rows'
    context without an error. Two short forwards; every process calls it."""
    if not layout.pack:
        return
    config = policy.unwrapped.config
    size = config.get_text_config().vocab_size
    fronts = [[(offset + 7 * place) % size for place in range(LENGTH)] for offset in (0, 3)]
    behind = [(1 + 5 * place) % size for place in range(LENGTH)]
    training = policy.module.training
    policy.module.eval()
    one, other = (_behind(run, policy, front, behind) for front in fronts)
    policy.module.train(training)
    apart = float((one - other).abs().max())
    if not apart <= MOST:
        raise ConfigError(
            f"layout.pack=true: {config.model_type} lets a packed row see the one in front of it (log-probabilities "
            f"differ by {apart:.2g}): set layout.pack=false"
        )


def _behind(run: Run, policy: Trainable, front: list[int], behind: list[int]) -> torch.Tensor:
    """Log-probabilities of a row's tokens behind another row."""
    rows = [Row(i, tuple(ids[:1]), tuple(ids[1:])) for i, ids in enumerate((front, behind))]
    micro = collate(rows, pack=True, device=run.device)
    with run.accelerator.autocast():
        logp_N, *_ = policy.module(**micro.inputs())
    return logp_N[LENGTH - 1 :].float()
