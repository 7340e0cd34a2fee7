"""Flow matching from speech codes to mel spectrograms: the loss of ``MelFlow``, and sampling by Euler with guidance.

Step-Audio's decoder (CosyVoice's) takes ten Euler steps and moves v = 1.7 v_c - 0.7 v_u, which is guidance 1.7 here;
its time steps follow a cosine, these are even or shifted. It drops the condition of a fifth of the rows in training.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stepstack.diffusion import flow
from stepstack.diffusion.config import SamplerConfig, TimeConfig
from stepstack.diffusion.sample import noise_like
from stepstack.models.speech.codebook import Codebook
from stepstack.models.speech.decoder import FRAMES_A_GROUP, MelFlow, centroid_mel
from stepstack.models.speech.tokenizer import Codes
from stepstack.models.speech.tokens import LINGUISTIC, SEMANTIC

SAMPLER = SamplerConfig(steps=10, guidance=1.7, shift=1.0)
DROPPED = 0.2  # share of rows that are trained without their codes


def mel_flow_loss(
    net: MelFlow, mel_BFC: Tensor, codes: Sequence[Codes], semantic: Codebook, generator: torch.Generator
) -> Tensor:
    """Mean squared error of the velocity on log-mels of whole groups, all rows of one length."""
    data = (mel_BFC - net.mean_C) / net.deviation_C
    noise = torch.randn(data.shape, generator=generator)
    t_B = flow.draw_times(TimeConfig(density="uniform"), len(data), generator)
    known_B = torch.rand(len(data), generator=generator) >= DROPPED
    v = net(flow.interpolate(data, noise, t_B), t_B, *_condition(net, codes, semantic), known_B)
    return flow.squared_error(v, flow.velocity(data, noise)) / len(data)


@torch.no_grad()
def sample_mel(net: MelFlow, codes: Codes, semantic: Codebook, cfg: SamplerConfig = SAMPLER, seed: int = 0) -> Tensor:
    """Log-mel [frames, bands] of whole groups of codes. FloatingPointError for one that is not finite."""
    condition = _condition(net, [codes], semantic)
    noise = noise_like((len(codes[1]) // SEMANTIC * FRAMES_A_GROUP, len(net.mean_C)), [seed])
    yes, no = torch.tensor([True]), torch.tensor([False])
    *_, data = flow.euler(noise, cfg, lambda x, t: net(x, t, *condition, yes), lambda x, t: net(x, t, *condition, no))
    if not torch.isfinite(data).all():
        raise FloatingPointError("the mel has NaN or infinite values: check the decoder's weights")
    return data[0] * net.deviation_C + net.mean_C


def _condition(net: MelFlow, codes: Sequence[Codes], semantic: Codebook) -> tuple[Tensor, Tensor, Tensor]:
    for linguistic, own in codes:
        if len(linguistic) % LINGUISTIC or len(linguistic) * SEMANTIC != len(own) * LINGUISTIC:
            raise ValueError(f"{len(linguistic)} linguistic and {len(own)} semantic codes are no whole groups")
    mel_BFC = torch.stack([centroid_mel(semantic, own) for _, own in codes])
    return (
        torch.tensor([linguistic for linguistic, _ in codes]),
        torch.tensor([own for _, own in codes]),
        (mel_BFC - net.mean_C) / net.deviation_C,
    )
