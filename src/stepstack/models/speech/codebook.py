"""Codebooks by k-means: trained, applied, kept in a file that names its digest."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stepstack.config import ConfigError

PARTS = ("centroids_VD", "mean_D", "deviation_D")


@dataclass(frozen=True)
class Codebook:
    """Centroids of standardised features, and the mean and deviation by which features are standardised."""

    centroids_VD: Tensor
    mean_D: Tensor
    deviation_D: Tensor

    def __len__(self) -> int:
        return len(self.centroids_VD)

    @property
    def digest(self) -> str:
        """First 16 hex digits of the sha256 of its numbers: tokens of another codebook mean something else."""
        content = b"".join(tensor.contiguous().numpy().tobytes() for tensor in self._halves().values())
        return hashlib.sha256(content).hexdigest()[:16]

    def encode(self, features_FD: Tensor) -> list[int]:
        """Code of the nearest centroid of each frame."""
        return nearest(self._standard(features_FD), self.centroids_VD).tolist()

    def decode(self, codes: list[int]) -> Tensor:
        """Features [frames, width] that the codes stand for. ValueError for a code beyond the codebook."""
        if wrong := [code for code in codes if not 0 <= code < len(self)]:
            raise ValueError(f"code {wrong[0]} is not of a codebook of {len(self)}")
        return self.centroids_VD[torch.tensor(codes, dtype=torch.long)] * self.deviation_D + self.mean_D

    def _standard(self, features_FD: Tensor) -> Tensor:
        return (features_FD - self.mean_D) / self.deviation_D

    def _halves(self) -> dict[str, Tensor]:
        return {name: vars(self)[name].half() for name in PARTS}

    def save(self, file: Path) -> None:
        """Write it in half precision, which is what ``digest`` hashes."""
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(self._halves(), file, metadata={"digest": self.digest})

    @classmethod
    def load(cls, file: Path) -> Codebook:
        """Codebook of a file. ConfigError for one that is missing or another thing."""
        if not file.is_file():
            raise ConfigError(f"{file} does not exist: make the codebooks first (make data)")
        tensors = load_file(file)
        if set(tensors) != set(PARTS):
            raise ConfigError(f"{file} is no codebook: it holds {sorted(tensors)}")
        return cls(**{name: tensor.float() for name, tensor in tensors.items()})


def train_codebook(features_FD: Tensor, size: int, *, seed: int = 0, steps: int = 25) -> Codebook:
    """Codebook by k-means (Lloyd) on standardised features, from centroids drawn by k-means++.

    A centroid without features moves to a feature that is far from its own. Deterministic in the seed. ValueError for
    fewer features than centroids.
    """
    if len(features_FD) < size:
        raise ValueError(f"{len(features_FD)} frames are too few for {size} codes: give more audio")
    mean, deviation = features_FD.mean(0), features_FD.std(0).clamp(min=1e-3)
    # In half precision from the beginning, as the file will have it.
    mean, deviation = mean.half().float(), deviation.half().float()
    data = (features_FD - mean) / deviation
    generator = torch.Generator().manual_seed(seed)
    centroids = _spread(data, size, generator)
    for _ in range(steps):
        owner = nearest(data, centroids)
        count = torch.bincount(owner, minlength=size)
        total = torch.zeros_like(centroids).index_add_(0, owner, data)
        centroids = torch.where(count[:, None] > 0, total / count.clamp(min=1)[:, None], centroids)
        if len(empty := (count == 0).nonzero()[:, 0]):
            far = (data - centroids[owner]).square().sum(1).topk(len(empty)).indices
            centroids[empty] = data[far]
    return Codebook(centroids.half().float(), mean, deviation)


def nearest(data_FD: Tensor, centroids_VD: Tensor, chunk: int = 4096) -> Tensor:
    """Place of the nearest centroid of each feature."""
    length_V = centroids_VD.square().sum(1)
    parts = [(length_V - 2 * part @ centroids_VD.T).argmin(1) for part in data_FD.split(chunk)]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.long)


def _spread(data_FD: Tensor, size: int, generator: torch.Generator, most: int = 20_000) -> Tensor:
    """Centroids drawn from up to ``most`` of the features, each with a chance that grows with its distance to those
    before."""
    pool = data_FD[torch.randperm(len(data_FD), generator=generator)[:most]]
    chosen = [pool[0]]
    distance = (pool - chosen[0]).square().sum(1)
    for _ in range(size - 1):
        draw = torch.rand((), generator=generator, dtype=torch.float64) * distance.double().sum()
        place = int(torch.searchsorted(distance.double().cumsum(0), draw).clamp(max=len(pool) - 1))
        chosen.append(pool[place])
        distance = torch.minimum(distance, (pool - pool[place]).square().sum(1))
    return torch.stack(chosen)
