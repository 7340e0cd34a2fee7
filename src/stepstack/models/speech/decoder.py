"""Codes back to sound: mels looked up in the semantic codebook, or made by a flow-matching net; then Griffin-Lim."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from stepstack.models.speech.codebook import Codebook
from stepstack.models.speech.mel import griffin_lim
from stepstack.models.speech.tokenizer import FRAMES, STACKED, Codes
from stepstack.models.speech.tokens import LINGUISTIC, SEMANTIC

FRAMES_A_GROUP = SEMANTIC * STACKED  # mel frames of 120 ms
SMOOTH = (0.25, 0.5, 0.25)  # filter over the frames, since codes step every four of them


class SpeechDecoder(Protocol):
    """The two streams of codes to a wave at 16 kHz."""

    def decode(self, codes: Codes) -> Tensor:
        """Wave [T] of whole groups of codes."""
        ...


def centroid_mel(semantic: Codebook, codes: list[int]) -> Tensor:
    """Log-mel [frames, bands] that the semantic codes stand for."""
    return semantic.decode(codes).reshape(len(codes) * STACKED, FRAMES.mels)


@dataclass(frozen=True)
class CentroidDecoder:
    """The floor: the semantic codes' own mels, without a net."""

    semantic: Codebook
    steps: int = 32
    smooth: bool = False

    def decode(self, codes: Codes) -> Tensor:
        mel_FC = centroid_mel(self.semantic, codes[1])
        if self.smooth and len(mel_FC) > 2:
            padded = torch.cat([mel_FC[:1], mel_FC, mel_FC[-1:]])
            mel_FC = sum(weight * padded[k : k + len(mel_FC)] for k, weight in enumerate(SMOOTH))  # type: ignore[assignment]
        return griffin_lim(mel_FC, FRAMES, self.steps)


@dataclass(frozen=True)
class ContextTables:
    """Corrections of the centroids' mel by the codes around: a sum over semantic codes up to two places away,
    linguistic codes around the same time, and the place in the group, by least squares.

    ``weights_VO``: [entries of all tables, 320]. ``linguistic``, ``semantic``: sizes of the codebooks.
    """

    weights_VO: Tensor
    linguistic: int
    semantic: int

    @property
    def size(self) -> int:
        """Entries of all tables together."""
        return context_size(self.linguistic, self.semantic)

    def correction(self, codes: Codes) -> Tensor:
        """Correction of the stacked mel of each semantic code, [codes, 320]."""
        return self.weights_VO[context_places(codes, self.linguistic, self.semantic)].sum(1)


NEAR = range(-2, 3)  # semantic codes that are looked at, from the one that is decoded
HEARD = range(-1, 3)  # linguistic codes that are looked at, from the last one that began before it


def context_size(linguistic: int, semantic: int) -> int:
    return len(NEAR) * semantic + len(HEARD) * linguistic + SEMANTIC


def context_places(codes: Codes, linguistic: int, semantic: int) -> Tensor:
    """Entries of ``ContextTables`` for each semantic code, [codes, 10]."""
    own, other = torch.tensor(codes[1]), torch.tensor(codes[0])
    places = torch.arange(len(own))
    began = places * LINGUISTIC // SEMANTIC
    columns = [k * semantic + own[(places + d).clamp(0, len(own) - 1)] for k, d in enumerate(NEAR)]
    start = len(NEAR) * semantic
    columns += [start + k * linguistic + other[(began + d).clamp(0, len(other) - 1)] for k, d in enumerate(HEARD)]
    return torch.stack([*columns, start + len(HEARD) * linguistic + places % SEMANTIC], 1)


@dataclass(frozen=True)
class ContextDecoder:
    """Centroids corrected by the codes around them."""

    semantic: Codebook
    tables: ContextTables
    steps: int = 32

    def mel(self, codes: Codes) -> Tensor:
        """Log-mel [frames, bands] of whole groups; that of a group depends on one group before and one behind it."""
        stacked = self.semantic.decode(codes[1]) + self.tables.correction(codes)
        return stacked.reshape(-1, FRAMES.mels)

    def decode(self, codes: Codes) -> Tensor:
        return griffin_lim(self.mel(codes), FRAMES, self.steps)


@dataclass(frozen=True)
class NetDecoder:
    """A net's mels: ``mel_of`` gives them of whole groups of codes, such as ``diffusion.speech.sample_mel``."""

    mel_of: Callable[[Codes], Tensor]
    steps: int = 32

    def decode(self, codes: Codes) -> Tensor:
        return griffin_lim(self.mel_of(codes), FRAMES, self.steps)


@dataclass(frozen=True)
class MelFlowShape:
    """Shape of ``MelFlow``: codebook sizes, width, blocks, frames that a block's filter sees."""

    linguistic: int
    semantic: int
    width: int = 128
    blocks: int = 6
    kernel: int = 7


class MelFlow(nn.Module):
    """Velocity of a mel spectrogram under flow matching, given both streams of codes (an embedding of each, repeated
    over its frames) and the centroids' mel.

    Mels go in and out standardised by ``mean_C`` and ``deviation_C``.
    """

    mean_C: Tensor
    deviation_C: Tensor

    def __init__(self, shape: MelFlowShape):
        super().__init__()
        self.shape = shape
        bands, width = FRAMES.mels, shape.width
        self.linguistic = nn.Embedding(shape.linguistic, width)
        self.semantic = nn.Embedding(shape.semantic, width)
        self.inputs = nn.Linear(2 * bands, width)
        self.time = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
        self.nothing = nn.Parameter(torch.zeros(width))  # in place of the codes, which guidance needs
        self.blocks = nn.ModuleList(MelBlock(width, shape.kernel) for _ in range(shape.blocks))
        self.outputs = nn.Linear(width, bands)
        nn.init.zeros_(self.outputs.weight)
        nn.init.zeros_(self.outputs.bias)
        self.register_buffer("mean_C", torch.zeros(bands))
        self.register_buffer("deviation_C", torch.ones(bands))

    def forward(
        self, x_BFC: Tensor, t_B: Tensor, linguistic_BL: Tensor, semantic_BS: Tensor, mel_BFC: Tensor, known_B: Tensor
    ) -> Tensor:
        """Velocity [B, F, C]. The last three are the condition; where ``known_B`` is False the net does not see it."""
        frames = FRAMES_A_GROUP
        codes_BFD = self.linguistic(linguistic_BL).repeat_interleave(frames // LINGUISTIC, 1)
        codes_BFD = codes_BFD + self.semantic(semantic_BS).repeat_interleave(frames // SEMANTIC, 1)
        known = known_B[:, None, None]
        condition = torch.where(known, codes_BFD, self.nothing)
        hidden_BFD = self.inputs(torch.cat([x_BFC, mel_BFC * known], -1)) + condition
        time_B1D = self.time(_waves(t_B))[:, None]
        for block in self.blocks:
            hidden_BFD = block(hidden_BFD, time_B1D)
        return self.outputs(hidden_BFD)

    def settings(self) -> dict[str, int]:
        return asdict(self.shape)


class MelBlock(nn.Module):
    """Filter over the frames of each channel, then an MLP, added to the input (ConvNeXt), shifted by the time."""

    def __init__(self, width: int, kernel: int):
        super().__init__()
        self.frames = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, hidden_BFD: Tensor, time_B1D: Tensor) -> Tensor:
        mixed = self.frames((hidden_BFD + time_B1D).transpose(1, 2)).transpose(1, 2)
        return hidden_BFD + self.down(nn.functional.gelu(self.up(self.norm(mixed))))


def _waves(t_B: Tensor, width: int = 64) -> Tensor:
    """Sines and cosines of the time at frequencies from 1 to 1000."""
    speed = torch.exp(torch.linspace(0, math.log(1000), width // 2, device=t_B.device))
    angle = t_B.float()[:, None] * speed
    return torch.cat([angle.sin(), angle.cos()], -1)
