"""`stepstack clips`: figures of a folder of videos: how many move, FVD-style distance."""

from __future__ import annotations

import argparse
from pathlib import Path

from stepstack.config import ConfigError

HELP = "figures of a folder of videos: how many move, FVD-style distance"


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="folder of video files, also in folders below")
    parser.add_argument("--against", type=Path, help="folder of true videos, for the Fréchet distance")
    features = "its network, by torch.export.save: [B, 3, F, Y, X] in [-1, 1] to [B, D]"
    parser.add_argument("--features", type=Path, help=features)
    parser.add_argument("--frames", type=int, default=16, help="frames that the network sees, from a video's first")
    size = "size in pixels at which the network sees them"
    parser.add_argument("--size", type=int, nargs=2, default=(224, 224), metavar=("HEIGHT", "WIDTH"), help=size)


def run(args: argparse.Namespace) -> int:
    from recipes.stepvideo.evaluation import clip_figures
    from stepstack.models.video.features import SavedFeatures

    if (args.against is None) != (args.features is None):
        raise ConfigError("--against and --features go together: true videos, and the network that compares; give both")
    files = clip_figures.files_in(args.folder)
    print(f"dynamic degree (Farneback)  {clip_figures.dynamic_degree(files):.3f} of {len(files)} videos")
    if args.against is not None:
        true = clip_figures.files_in(args.against)
        distances = clip_figures.frechet(files, true, SavedFeatures(args.features), args.frames, tuple(args.size))
        print(f"Fréchet distance            {distances['distance']:.4g} to {len(true)} true videos")
        print(f"of their two halves         {distances['true']:.4g}")
    return 0
