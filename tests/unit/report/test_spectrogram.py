"""Pictures of spectrograms: the loudest cell is the brightest, low bands lie below, and players stand beside them."""

from __future__ import annotations

import io
import re

import numpy as np
from PIL import Image

from stepstack.report.html import Report, Sound
from stepstack.report.spectrogram import RANGE, SHADES, spectrogram_png


def test_a_pixel_a_cell():
    mel = np.full((30, 8), -10.0)
    mel[4, 0] = 1.0
    mel[5, 0] = 1.0 - RANGE / 2
    picture = Image.open(io.BytesIO(spectrogram_png(mel))).convert("RGB")
    assert picture.size == (30, 8)
    assert picture.getpixel((4, 7)) == SHADES[-1]
    assert picture.getpixel((0, 0)) == SHADES[0]
    assert picture.getpixel((5, 7)) not in (SHADES[0], SHADES[-1])
    assert spectrogram_png(np.zeros((0, 8))) == b""


def test_sounds_of_a_page(tmp_path):
    report = Report("speech")
    words = [("open", False), ("<b>box</b>", True)]
    report.sounds("Listen", ("text", "teacher", "student"), [["open box", Sound(b"RIFF", b"PNG", words), Sound(b"")]])
    page = report.write(tmp_path / "a.html").read_text()
    assert page.count("<audio") == page.count('class="spectrogram"') == 1
    assert "open <mark>&lt;b&gt;box&lt;/b&gt;</mark>" in page
    cells = r'<td data-head="text">open box</td><td data-head="teacher"><audio.*</td>'
    cells += '<td data-head="student"><div></div></td>'
    assert re.search(f"<tr>{cells}</tr>", page)
