"""Features of clips, for distances between sets of clips."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from stepstack.config import ConfigError


class VideoFeatures(Protocol):
    """Function from clips [B, F, Y, X, RGB], uint8, to features [B, D]."""

    def __call__(self, clips_BFYXC: NDArray[np.uint8]) -> NDArray[np.float64]: ...


class SavedFeatures:
    """Network saved by ``torch.export.save``, from clips [B, 3, F, Y, X] in [-1, 1] to features [B, D].

    FVD takes I3D trained on Kinetics-400 (arXiv 1812.01717), which is not part of this project.
    """

    def __init__(self, file: Path):
        """Load the network. ConfigError where the file does not exist."""
        if not file.is_file():
            raise ConfigError(f"{file} does not exist: torch.export.save a network from clips to features there")
        self.network = torch.export.load(file).module()

    @torch.no_grad()
    def __call__(self, clips_BFYXC: NDArray[np.uint8]) -> NDArray[np.float64]:
        return self.network(to_network_input(clips_BFYXC)).double().numpy()


def to_network_input(clips_BFYXC: NDArray[np.uint8]) -> torch.Tensor:
    """Clips as [B, 3, F, Y, X] in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(clips_BFYXC)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def clip_features(features: VideoFeatures, clips: Iterable[NDArray[np.uint8]], batch: int = 32) -> NDArray[np.float64]:
    """Features [B, D] of clips of one shape, computed batch by batch. ValueError where there are none."""
    left = iter(clips)
    some = iter(lambda: list(islice(left, batch)), [])
    return np.concatenate([features(np.stack(part)) for part in some])
