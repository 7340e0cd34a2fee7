"""The picture of a streamed run: lanes, the newest steps, waits."""

from __future__ import annotations

from stepstack.report import timeline

ROWS = [
    {"who": who, "what": what, "step": step, "began": 100.0 + began, "ended": 100.0 + ended, "unit": 0}
    for who, what, step, began, ended in (
        ("local-0", "generate", 0, 0, 2),
        ("trainer", "wait", 0, 0, 2),
        ("trainer", "train", 0, 2, 5),
        ("local-1", "generate", 1, 2, 3),
    )
]


def test_lanes_times_and_waits():
    spans = timeline.spans_of(ROWS)
    [axes] = timeline.draw(spans).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["local-0", "local-1", "trainer"]
    boxes = [(bar.get_x(), bar.get_width(), bar.get_alpha()) for bar in axes.patches]
    assert boxes == [(0, 2, 0.9), (0, 2, 0.15), (2, 3, 0.9), (2, 1, 0.9)]


def test_the_newest_steps():
    assert {span.step for span in timeline.last_steps(timeline.spans_of(ROWS), 1)} == {1}
    assert timeline.last_steps([], 3) == []
