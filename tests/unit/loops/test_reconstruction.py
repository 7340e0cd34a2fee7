"""The VAE's loss in numbers, and its perceptual term by a network that is read from a file."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from stepstack.config import ConfigError
from stepstack.diffusion.config import ReconstructionWeights
from stepstack.loops.reconstruction import VideoMicroBatch, load_features, perceptual_distance, reconstruction


class Told(nn.Module):
    """Gives what it was told, whatever it is shown."""

    def __init__(self, made, mean, logvar):
        super().__init__()
        self.told = made, mean, logvar

    def forward(self, video, noise):
        return self.told


class Maps(nn.Module):
    """Two feature maps: of a network, and their 2 x 2 means."""

    def __init__(self, network=None):
        super().__init__()
        self.network = network or nn.Identity()

    def forward(self, x):
        return [self.network(x), nn.functional.avg_pool2d(self.network(x), 2)]


def test_the_loss_in_numbers():
    video = torch.zeros(2, 3, 3, 4, 4)
    told = Told(video + 0.5, torch.full((2, 4, 3, 1, 1), 2.0), torch.zeros(2, 4, 3, 1, 1))
    out = reconstruction(ReconstructionWeights(squared=4.0, absolute=0.1, kl=0.01))(
        told, VideoMicroBatch(video, torch.zeros(1))
    )
    assert float(out.total) == pytest.approx(2 * (4 * 0.25 + 0.1 * 0.5 + 0.01 * 2.0))
    assert {k: float(v) for k, v in out.metrics.items()} == {"squared": 0.5, "absolute": 1.0, "kl": 4.0}
    assert (out.count, out.work) == (2, 2)


def test_the_perceptual_distance_in_numbers():
    """Features [1, 0, 0] and [3, 4, 0] / 5: their squared distance is 0.8 at every place, in both maps."""
    a, b = torch.zeros(1, 2, 3, 4, 4), torch.zeros(1, 2, 3, 4, 4)
    a[:, :, 0], b[:, :, 0], b[:, :, 1] = 7.0, 3.0, 4.0
    assert float(perceptual_distance(Maps(), a, b)) == pytest.approx(2 * 0.8)
    assert float(perceptual_distance(Maps(), a, 2 * a)) == pytest.approx(0.0, abs=1e-10)
    b[:, 1] = a[:, 1]  # one frame of two is right
    assert float(perceptual_distance(Maps(), a, b)) == pytest.approx(0.8)


def test_a_network_from_a_file_shapes_the_picture(tmp_path):
    torch.manual_seed(0)
    network = Maps(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    frames = {0: torch.export.Dim("frames")}
    program = torch.export.export(network, (torch.rand(2, 3, 8, 8),), dynamic_shapes=(frames,))
    torch.export.save(program, tmp_path / "net.pt2")
    features = load_features(str(tmp_path / "net.pt2"), torch.device("cpu"))
    video = torch.rand(2, 3, 3, 8, 8)
    made = torch.rand(2, 3, 3, 8, 8, requires_grad=True)
    told = Told(made, torch.zeros(2, 1, 1, 1, 1), torch.zeros(2, 1, 1, 1, 1))
    weights = ReconstructionWeights(squared=0.0, absolute=0.0, kl=0.0, perceptual=2.0, features="net.pt2")
    out = reconstruction(weights, features)(told, VideoMicroBatch(video, torch.zeros(1)))
    by_hand = 0.0
    for one, other in zip(made.flatten(0, 1), video.flatten(0, 1), strict=True):
        for f, g in zip(network(one[None]), network(other[None]), strict=True):
            unit, goal = (m[0] / m[0].norm(dim=0).clamp(min=1e-12) for m in (f, g))
            by_hand += float((unit - goal).detach().square().sum(0).mean()) / 3
    assert float(out.total.detach()) == pytest.approx(2 * by_hand, rel=1e-5)
    out.total.backward()
    assert made.grad.abs().max() > 0
    assert not any(p.requires_grad for p in features.parameters())
    assert math.isfinite(float(made.grad.sum()))


def test_what_does_not_go_together_is_named(tmp_path):
    with pytest.raises(ValueError, match="go together"):
        ReconstructionWeights(perceptual=0.1)
    with pytest.raises(ConfigError, match=r"weights\.features=none\.pt2 does not exist"):
        load_features("none.pt2", torch.device("cpu"))
