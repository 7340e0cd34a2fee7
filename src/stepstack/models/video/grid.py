"""Grids of latents and tokens. No torch."""

from __future__ import annotations

Grid = tuple[int, int, int]  # latent frames, height, width


def grid_of(frames: int, height: int, width: int, stride: Grid) -> Grid:
    """Latent grid of a causal codec, which takes 1 + n * stride frames. ValueError with the nearest size that fits."""
    t, h, w = stride
    if (frames - 1) % t or height % h or width % w or min(frames, height, width) < 1:
        near = (max(0, round((frames - 1) / t)) * t + 1, max(1, round(height / h)) * h, max(1, round(width / w)) * w)
        raise ValueError(
            f"{frames} frames of {width} x {height} do not fit strides of {t} frames and {w} x {h} pixels: "
            f"take {near[0]} frames of {near[2]} x {near[1]}"
        )
    return 1 + (frames - 1) // t, height // h, width // w
