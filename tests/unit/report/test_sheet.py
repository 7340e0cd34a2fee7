"""A contact sheet shows every picture where it says."""

import io

import pytest
from PIL import Image

from stepstack.report.sheet import MARGIN, sheet


def flat(colour: str, size=(20, 10)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "PNG")
    return out.getvalue()


def test_rows_and_columns_hold_their_pictures():
    rows = {"before": [(flat("red"), "a\nb"), (flat("lime"), "c")], "after": [(flat("blue"), "d")]}
    with Image.open(io.BytesIO(sheet(rows, width=40))) as result:
        result = result.convert("RGB")
        assert result.width == MARGIN + 2 * (40 + MARGIN)
        colours = {
            result.getpixel((x, y)): (x > result.width // 2, y)
            for x in range(result.width)
            for y in range(result.height)
        }
    red, lime, blue = (colours[c] for c in ((255, 0, 0), (0, 255, 0), (0, 0, 255)))
    assert (red[0], lime[0], blue[0]) == (False, True, False)
    assert blue[1] > red[1] == lime[1]


def test_no_picture_is_an_error():
    with pytest.raises(ValueError, match="at least one picture"):
        sheet({"before": []})
