"""Pictures of spectrograms: small PNGs with a palette. No torch."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

SHADES = ((0, 0, 4), (40, 17, 90), (120, 28, 109), (190, 55, 84), (237, 105, 37), (251, 180, 26), (252, 255, 200))
RANGE = 7.0  # natural logarithms between the darkest and the brightest shade, the loudest cell


def spectrogram_png(log_mel: NDArray[np.floating]) -> bytes:
    """PNG of natural log-magnitudes [frames, bands]: a pixel a cell, time to the right, low bands below. Empty for no
    frames."""
    from PIL import Image  # only where a page is written

    if not len(log_mel):
        return b""
    level = (log_mel - (log_mel.max() - RANGE)) / RANGE
    picture = Image.fromarray(np.round(np.clip(level, 0, 1) * 255).astype(np.uint8).T[::-1], mode="L")
    marks = np.linspace(0, 255, len(SHADES))
    palette = np.stack([np.interp(np.arange(256), marks, channel) for channel in zip(*SHADES, strict=True)], 1)
    picture.putpalette(np.round(palette).astype(np.uint8).tobytes())
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True)
    return out.getvalue()
