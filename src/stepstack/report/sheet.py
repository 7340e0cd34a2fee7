"""Contact sheet: rows of pictures with a line of text below each, in one PNG. No torch."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

MARGIN, LINE = 8, 13  # pixels around a picture, and height of a line of text
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
INK, PAPER = (34, 34, 34), (255, 255, 255)


def sheet(rows: Mapping[str, Sequence[tuple[bytes, str]]], width: int = 160) -> bytes:
    """PNG with a titled row for each entry, whose items are (PNG, caption), scaled to ``width``.

    Captions keep their line breaks. ValueError where there is no picture.
    """
    if not any(rows.values()):
        raise ValueError("a sheet needs at least one picture: give one")
    font = ImageFont.load_default(11)
    columns = max(map(len, rows.values()))
    strips = [_strip(title, items, columns, width, font) for title, items in rows.items()]
    whole = Image.new("RGB", (strips[0].width, sum(strip.height for strip in strips)), PAPER)
    top = 0
    for strip in strips:
        whole.paste(strip, (0, top))
        top += strip.height
    out = io.BytesIO()
    whole.save(out, "PNG", optimize=True)
    return out.getvalue()


def _strip(
    title: str,
    items: Sequence[tuple[bytes, str]],
    columns: int,
    width: int,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> Image.Image:
    pictures = [Image.open(io.BytesIO(png)).convert("RGB") for png, _ in items]
    scaled = [p.resize((width, round(p.height * width / p.width)), Image.Resampling.LANCZOS) for p in pictures]
    tall = max((p.height for p in scaled), default=0)
    lines = max((caption.count("\n") + 1 for _, caption in items), default=0)
    strip = Image.new("RGB", (MARGIN + columns * (width + MARGIN), 2 * LINE + tall + lines * LINE + MARGIN), PAPER)
    pen = ImageDraw.Draw(strip)
    pen.text((MARGIN, 2), title, INK, font)
    for place, (picture, (_, caption)) in enumerate(zip(scaled, items, strict=True)):
        left = MARGIN + place * (width + MARGIN)
        strip.paste(picture, (left, 2 * LINE - 6))
        pen.multiline_text((left, 2 * LINE + tall - 4), caption, INK, font, spacing=2)
    return strip
