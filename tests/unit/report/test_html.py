"""Parts of a report's page."""

from __future__ import annotations

import base64

from stepstack.report.html import FramedPicture, Report


def test_columns_of_lines_and_framed_pictures_stand_side_by_side(tmp_path):
    report = Report("a run")
    plain, framed = FramedPicture(b"one"), FramedPicture(b"two", "#123456")
    report.side_by_side("Papers", [[("paper <1>", ["a & b", plain]), ("after", [framed])], [("paper 2", [])]], width=50)
    page = report.write(tmp_path / "report.html").read_text()
    assert page.count('<div class="side">') == 2
    assert "<b>paper &lt;1&gt;</b><p>a &amp; b</p><img" in page
    for content in (b"one", b"two"):
        assert base64.b64encode(content).decode() in page
    assert page.count("width: 50px") == 2
    assert page.count("border-color: #123456") == 1
