"""`stepstack clips` on made-up videos and a network of three numbers whose distance is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from data.errors import DataError
from data.media import frames, videos
from recipes.stepvideo.evaluation import clip_figures
from stepstack.cli import main as cli
from stepstack.config import ConfigError
from stepstack.models.video.features import SavedFeatures, clip_features


class Brightness(nn.Module):
    """Mean of each colour over a clip, in [-1, 1]."""

    def forward(self, video_BCFYX):
        return video_BCFYX.mean((2, 3, 4))


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("network") / "brightness.pt2"
    batch = torch.export.Dim("batch")
    program = torch.export.export(Brightness(), (torch.rand(2, 3, 4, 32, 32),), dynamic_shapes=({0: batch},))
    torch.export.save(program, file)
    return file


def folder(place: Path, greys: list[int], speed: float = 0.0, count: int = 8) -> Path:
    """A clip of a bright square on each grey; a square that moves."""
    place.mkdir()
    for number, grey in enumerate(greys):
        clip = np.full((count, 64, 64, 3), grey, np.uint8)
        for t in range(count):
            left = 8 + round(speed * t)
            clip[t, 24:40, left : left + 16] = np.random.default_rng(0).integers(150, 255, (16, 16, 1))
        frames.write_mp4(place / f"{number}.mp4", clip, fps=8)
    return place


def test_features_are_the_networks_of_clips_as_it_takes_them(network):
    clips = np.stack([np.full((4, 32, 32, 3), grey, np.uint8) for grey in (0, 255, 51)])
    found = clip_features(SavedFeatures(network), iter(clips), batch=2)
    assert found == pytest.approx(np.array([[-1] * 3, [1] * 3, [-0.6] * 3]), abs=1e-6)


def test_sets_of_clips_have_the_distance_of_their_features(tmp_path, network):
    dark, light = (folder(tmp_path / name, greys) for name, greys in (("a", [40, 60, 80, 60]), ("b", [140, 160, 180])))
    features = SavedFeatures(network)
    files, true = clip_figures.files_in(light), clip_figures.files_in(dark)
    found = clip_figures.frechet(files, true, features, 4, (32, 32))
    means = clip_features(features, clip_figures._starts(true, 4, (32, 32)))
    apart = clip_features(features, clip_figures._starts(files, 4, (32, 32))).mean(0) - means.mean(0)
    assert found["distance"] == pytest.approx((apart**2).sum(), rel=0.02)  # spreads are nearly the same
    assert found["true"] < 0.1 * found["distance"]
    assert clip_figures.frechet(true, true, features, 4, (32, 32))["distance"] == pytest.approx(0, abs=1e-9)


def test_the_command_says_what_moves_and_how_far_it_is(tmp_path, network, capsys):
    still, moved = folder(tmp_path / "still", [60] * 4), folder(tmp_path / "moved", [60] * 2, speed=4)
    assert cli.main(["clips", str(moved)]) == 0
    assert "1.000 of 2 videos" in capsys.readouterr().out
    for file in moved.glob("*.mp4"):
        (tmp_path / "gif").mkdir(exist_ok=True)
        (tmp_path / "gif" / f"{file.stem}.GIF").write_bytes(frames.gif(videos.read_video(file)[0], fps=8))
    assert cli.main(["clips", str(tmp_path / "gif")]) == 0
    assert "1.000 of 2 videos" in capsys.readouterr().out
    line = ["clips", str(tmp_path), "--against", str(still), "--features", str(network), "--frames", "4"]
    assert cli.main([*line, "--size", "32", "32"]) == 0
    said = capsys.readouterr().out
    assert "0.500 of 8 videos" in said
    assert "to 4 true videos" in said
    assert cli.main(line[:4]) == 2
    assert "--against and --features go together" in capsys.readouterr().err


def test_what_cannot_be_compared_is_named(tmp_path, network):
    few = clip_figures.files_in(folder(tmp_path / "few", [60] * 4, count=3))
    with pytest.raises(DataError, match=r"0\.mp4 has 3 frames, 4 are compared"):
        clip_figures.frechet(few, few, SavedFeatures(network), 4, (32, 32))
    with pytest.raises(DataError, match="1 clips and 4 true ones"):
        clip_figures.frechet(few[:1], few, SavedFeatures(network), 2, (32, 32))
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="holds no videos"):
        clip_figures.files_in(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"torch\.export\.save"):
        SavedFeatures(tmp_path / "none.pt2")
