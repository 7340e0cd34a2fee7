"""Numbers that are read in the wrong convention: refused, and the right one named."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import BadRow
from data.prepare.config import IntakeOptions
from data.prepare.conventions import Annotation, Convention, normalise_numbers, possible_spaces
from data.sets import coco, pixmo_count, refcoco
from stepstack.scoring.vision import spatial
from tests.unit.data.photos import SIZE, as_written, errors_of, expressions, instances, photos, png, some_boxes, write


@pytest.mark.parametrize("declared", ["pixels", "thousand", "percent", "unit"])
@pytest.mark.parametrize("written", ["pixels", "thousand", "percent", "unit"])
@pytest.mark.parametrize("layout", ["xyxy", "xywh"])
@pytest.mark.parametrize("declared_options", ["xyxy", "xywh"])
def test_every_wrong_convention_is_refused_and_named(tmp_path_factory, declared, written, layout, declared_options):
    """The trap of PR1's issue 27: pixels of a 640 x 480 picture are valid thousandths too."""
    folder = tmp_path_factory.mktemp("refs")
    source = expressions(folder, [as_written(box, written, layout) for box in some_boxes(30)], same=True)

    def prepare():
        return refcoco.prepare(folder / "out", source, [], IntakeOptions(space=declared, layout=declared_options))

    if (declared, declared_options) == (written, layout):
        prepare()
        records = refcoco.load(folder / "out", "train")
        for record, box in zip(records, some_boxes(30), strict=True):
            result = spatial.convert(record.targets[0].box, record.space, "pixels", SIZE)
            assert spatial.iou(result, tuple(box)) > (0.5 if written == "percent" else 0.95)
        return
    message = errors_of(prepare)[0]
    assert not (folder / "out").exists()
    assert f"{source}: its numbers are not space={declared} layout={declared_options}" in message
    assert f"They look like space={written} layout={layout}" in message
    changes = [f"space={written}"] * (declared != written) + [f"layout={layout}"] * (declared_options != layout)
    assert f"set {' and '.join(changes)}." in message
    assert "train.json row" in message


def test_pixels_read_as_thousandths_are_found_in_mixed_sizes_too(tmp_path):
    rows = []
    for number, size in enumerate([(640, 480), (480, 640), (500, 375), (1000, 750)] * 10):
        (tmp_path / f"{number}.png").write_bytes(png(size, (number, 0, 0)))
        rows.append({"image": f"{number}.png", "problem": "x", "solution": some_boxes(40, size)[number]})
    source = write(tmp_path / "train.json", rows)
    (message,) = errors_of(lambda: refcoco.prepare(tmp_path / "out", source, [], IntakeOptions(space="thousand")))
    assert "They look like space=pixels layout=xyxy: set space=pixels." in message
    assert "end at the edge of pixels and 0 beyond it" in message
    refcoco.prepare(tmp_path / "out", source, [], IntakeOptions(space="pixels"))


@pytest.mark.parametrize("size", [(100, 100), (333, 1000), (1000, 750), (2000, 1500), (56, 56)])
@pytest.mark.parametrize("space", ["pixels", "thousand", "unit"])
def test_a_right_convention_is_not_suspected(tmp_path, size, space):
    boxes = [as_written(box, space, "xyxy", size) for box in some_boxes(200, size)]
    source = expressions(tmp_path, boxes, size=size, same=True)
    manifest = refcoco.prepare(tmp_path / "out", source, [], IntakeOptions(space=space))
    assert manifest.counts["kept"] == {"train": 200}


def test_objects_in_the_middle_are_no_other_layout(tmp_path):
    """x1 + x2 is the width of the picture for all of them, so that they end at its edge when read as x, y, w, h."""
    boxes = [[320 - n, 240 - n, 320 + n, 240 + n] for n in range(20, 200, 6)]
    refcoco.prepare(tmp_path / "out", expressions(tmp_path, boxes, same=True), [], IntakeOptions(space="pixels"))


def test_a_pixel_of_rounding_is_clipped():
    pixels = Convention("pixels", "xyxy")
    assert normalise_numbers((-0.4, 0, 640.9, 480), SIZE, pixels) == ((0, 0, 640, 480), "pixels", True)
    assert normalise_numbers((0, 0, 1001.5, 1000), SIZE, Convention("thousand", "xyxy")) == (
        (0, 0, 1000, 1000),
        "thousand",
        True,
    )
    assert normalise_numbers((10, 20, 30, 40), SIZE, Convention("pixels", "xywh")) == (
        (10, 20, 40, 60),
        "pixels",
        False,
    )
    assert normalise_numbers((10, 20), SIZE, Convention("percent", "xyxy")) == ((100, 200), "thousand", False)
    for outside in ((0, 0, 641.1, 480), (641, 0, 642, 10)):
        with pytest.raises(BadRow, match=r"reaches outside|has no area"):
            normalise_numbers(outside, SIZE, pixels)


def test_points_in_percent_are_found_and_read(tmp_path):
    rng = random.Random(0)
    rows = []
    for name in photos(tmp_path, 40):
        points = [[rng.uniform(0, 100), rng.uniform(0, 100)] for _ in range(3)]
        rows.append({"image": name, "label": "x", "count": 3, "points": points})
    source = write(tmp_path / "t.json", rows)
    (message,) = errors_of(lambda: pixmo_count.prepare(tmp_path / "out", source, [], IntakeOptions(space="pixels")))
    assert "They look like space=percent layout=xyxy: set space=percent." in message
    pixmo_count.prepare(tmp_path / "out", source, [], IntakeOptions(space="percent"))
    record = pixmo_count.load(tmp_path / "out", "train")[0]
    assert record.space == "thousand"
    assert record.targets[0].point == tuple(value * 10 for value in rows[0]["points"][0])
    unit = write(tmp_path / "u.json", [{"image": "0.png", "label": "x", "count": 1, "points": [[0.4, 0.7]]}])
    (message,) = errors_of(lambda: pixmo_count.prepare(tmp_path / "unit", unit, [], IntakeOptions(space="pixels")))
    assert "no number is above 1. They look like space=unit" in message


def test_coco_boxes_as_corners_are_found(tmp_path):
    (tmp_path / "a").mkdir()
    boxes = [{"id": 100 + n, "image_id": 10, "category_id": 1, "bbox": box} for n, box in enumerate(some_boxes(90))]
    source = instances(tmp_path / "a", annotations=boxes)
    (message,) = errors_of(lambda: coco.prepare(tmp_path / "out", source, [], IntakeOptions()))
    assert "They look like space=pixels layout=xyxy: set layout=xyxy." in message


@pytest.mark.parametrize("space", ["pixels", "thousand", "percent", "unit"])
@pytest.mark.parametrize("size", [SIZE, (1600, 1200)])
def test_a_space_that_only_one_reading_fits_need_not_be_given(tmp_path, space, size):
    boxes = [as_written(box, space, "xyxy", size) for box in some_boxes(30, size)]
    source = expressions(tmp_path, boxes, size=size, same=True)
    manifest = refcoco.prepare(tmp_path / "out", source, [], IntakeOptions())
    given = refcoco.prepare(tmp_path / "given", source, [], IntakeOptions(space=space))
    assert (manifest.options["source_space"], manifest.options["layout"]) == (space, "xyxy")
    assert manifest.files == given.files


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_space_is_never_guessed(data):
    """Whatever the boxes are, what is decided is either the space that they were written in, or nothing."""
    size = data.draw(st.sampled_from([(64, 64), SIZE, (900, 1600)]))
    space = data.draw(st.sampled_from(["pixels", "thousand", "unit"]))
    edges = data.draw(st.sampled_from([0.2, 0.6, 0.95, 1.0]))
    marks = []
    for _ in range(data.draw(st.integers(1, 30))):
        x1, y1 = (data.draw(st.floats(0, edges * 0.9)) for _ in range(2))
        x2, y2 = (data.draw(st.floats(low + 0.05 * edges, edges)) for low in (x1, y1))
        box = [x1 * size[0], y1 * size[1], x2 * size[0], y2 * size[1]]
        marks.append(Annotation("row", tuple(as_written(box, space, "xyxy", size)), size))
    spaces = possible_spaces(marks, "xyxy")
    if space != "unit" and max(max(mark.numbers) for mark in marks) > 1:
        assert space in spaces or not spaces


def test_what_several_readings_fit_must_be_given(tmp_path):
    boxes = [[25, 19, 43, 34], [10, 10, 20, 30], [5, 40, 30, 60]]  # of 64 x 64 pixels, or thousandths near a corner
    source = expressions(tmp_path, boxes, size=(64, 64), same=True)
    (message,) = errors_of(lambda: refcoco.prepare(tmp_path / "out", source, [], IntakeOptions()))
    assert "the training numbers fit space=pixels and space=thousand and space=percent, so they do not say" in message
    assert "set data.options.space to pixels, thousand, percent or unit. For example" in message
    assert "[25.0, 19.0, 43.0, 34.0] in a picture of 64 x 64" in message
    assert not (tmp_path / "out").exists()
    for space in ("pixels", "thousand"):
        manifest = refcoco.prepare(tmp_path / space, source, [], IntakeOptions(space=space))
        assert manifest.options["space"] == space


def test_rows_in_both_spaces_decide_by_their_own_thousandths(tmp_path):
    photos(tmp_path, 1)
    row = {"image": "0.png", "problem": "cup", "solution": [64, 48, 640, 480]}
    both = write(tmp_path / "both.json", [{**row, "normalized_solution": [100, 100, 1000, 1000]}])
    assert refcoco.prepare(tmp_path / "out", both, [], IntakeOptions()).options["source_space"] == "thousand"
