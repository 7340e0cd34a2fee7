"""A distance between generated and true drawn clips in the manner of FVD, by the features of a small classifier.

It is trained anew where it is asked for, about 20 CPU-s, always the same: figures of two runs have one scale.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from data.drawn import moving
from data.drawn.moving import Clip, Moving
from stepstack.core.config import AdamW, Schedule
from stepstack.core.optim import optimizers
from stepstack.harness.metrics import Metric, Question, corpus, scored
from stepstack.models.video.features import VideoFeatures, clip_features, to_network_input
from stepstack.scoring.frechet import Gaussian, distance, gaussian

STEPS, BATCH, SEED = 350, 32, 0
REFERENCE = 512  # true clips that both sets are compared with
WIDTHS, DIMS = (16, 32, 64), 32
OPTIM = AdamW(lr=6e-3, betas=(0.9, 0.99), schedule=Schedule(kind="cosine", warmup=20))


class Classifier(nn.Module):
    """Tells a clip's direction, colour, form and motion score; its features [B, DIMS] are what it tells them by."""

    def __init__(self, data: Moving):
        super().__init__()
        self.classes = (list(moving.STEP), get_args(moving.Colour), get_args(moving.Form), data.scores)
        a, b, c = WIDTHS
        self.body = nn.Sequential(
            nn.Conv3d(3, a, (1, 5, 5), stride=(1, 2, 2), padding=(0, 2, 2)),
            nn.ReLU(),
            nn.Conv3d(a, b, 3, stride=2, padding=1),
            nn.GroupNorm(4, b),
            nn.ReLU(),
            nn.Conv3d(b, c, 3, stride=(2, 1, 1), padding=1),
            nn.GroupNorm(4, c),
            nn.ReLU(),
        )
        self.features = nn.Linear(2 * c, DIMS)
        self.heads = nn.Linear(DIMS, sum(map(len, self.classes)))

    def forward(self, video_BCFYX: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Features, and logits of each of the four."""
        maps = self.body(video_BCFYX).flatten(2)
        features_BD = self.features(torch.cat([maps.mean(2), maps.amax(2)], 1))
        return features_BD, self.heads(F.relu(features_BD)).split([len(names) for names in self.classes], 1)

    def labels(self, clips: Sequence[Clip]) -> Tensor:
        """[B, 4]; -100, which no loss counts, for the direction of a clip that stands still."""
        direction, colour, form, score = ([*names].index for names in self.classes)
        rows = [
            (direction(c.direction) if c.score else -100, colour(c.colour), form(c.form), score(c.score)) for c in clips
        ]
        return torch.tensor(rows)


@cache
def classifier(data: Moving, steps: int = STEPS) -> Classifier:
    """Trained on true clips; a pure function of its arguments."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        net = Classifier(data)
    clips, generator = moving.clips(data, "train"), torch.Generator().manual_seed(SEED)
    [optimizer] = optimizers(net, OPTIM)
    for step in range(steps):
        batch = [clips[i] for i in torch.randint(len(clips), (BATCH,), generator=generator).tolist()]
        _, logits = net(to_network_input(np.stack([moving.render(clip, data) for clip in batch])))
        labels = net.labels(batch).unbind(1)
        loss = torch.stack([F.cross_entropy(x, y) for x, y in zip(logits, labels, strict=True)]).sum()
        for group in optimizer.param_groups:
            group["lr"] = OPTIM.lr * OPTIM.schedule.factor(step, steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


def features(data: Moving, steps: int = STEPS) -> VideoFeatures:
    net = classifier(data, steps)

    def of(clips_BFYXC: NDArray[np.uint8]) -> NDArray[np.float64]:
        with torch.no_grad():
            return net(to_network_input(clips_BFYXC))[0].double().numpy()

    return of


def figures(data: Moving, read: Callable[[str], NDArray[np.uint8]], steps: int = STEPS) -> list[Metric]:
    """Distances from generated clips to training clips, and from the true clips of the same conditions, which is what
    chance alone makes of so few clips. ``read``: the clip of an answer."""

    @cache
    def reference() -> Gaussian:
        true = moving.clips(data, "train")[:REFERENCE]
        return gaussian(clip_features(features(data, steps), (moving.render(clip, data) for clip in true)))

    @cache
    def row(text: str, true: bool) -> NDArray[np.float64]:
        clip = moving.render(Clip.read(text), data) if true else read(text)
        return features(data, steps)(clip[None])[0]

    def apart(questions: Sequence[Question], true: bool) -> float | None:
        samples = [sample for question in questions for sample in scored(question)]
        if len(samples) < 2:
            return None
        return distance(gaussian(np.stack([row(s.gold if true else s.media[0], true) for s in samples])), reference())

    return [
        corpus("Fréchet distance", lambda questions: apart(questions, False), higher_is_better=False),
        corpus("Fréchet distance of true clips", lambda questions: apart(questions, True), higher_is_better=False),
    ]
