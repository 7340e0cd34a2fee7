"""Preparing COCO's instances files: crowds, areas, boxes without area, and entries that are wrong."""

import json

import pytest

from data.errors import DataError
from data.media.images import Target
from data.prepare.config import IntakeOptions
from data.sets import coco
from tests.unit.data.photos import SIZE, errors_of, instances, write

FLAT = ([0, 0, 0, 9], [5, 5, 7, 0], [1, 1, 0, 0], [3, 3, 0.0, 2])
IMAGE = {"id": 12, "file_name": "2.png", "width": 640, "height": 480}
OBJECT = {"id": 9, "image_id": 10, "category_id": 1, "bbox": [0, 0, 9, 9]}


def test_coco_in_its_published_form(tmp_path):
    source = instances(tmp_path)
    manifest = coco.prepare(tmp_path / "out", source, [], IntakeOptions())
    first, second = coco.load(tmp_path / "out", "train")
    assert (first.task, first.question, first.space) == ("detection", "person, dog", "pixels")
    assert first.targets == (Target("dog", (10.5, 20, 110.5, 220)), Target("person", (600, 0, 640, 480)))
    assert second.targets == (Target("person", (0, 0, 64, 48)), Target("person", (0, 0, 640, 480), crowd=True))
    assert (manifest.sources[0]["crowds"], manifest.counts["clipped"], manifest.sources[0]["rows"]) == (1, 1, 2)
    assert "question" not in json.loads((tmp_path / "out" / "train.jsonl").read_text().splitlines()[0])


def test_a_picture_without_objects_is_said(tmp_path):
    empty = {"id": 12, "file_name": "2.png", "width": 640, "height": 480}
    source = instances(tmp_path, images=[empty])
    _, line = errors_of(lambda: coco.prepare(tmp_path / "out", source, [], IntakeOptions()))
    assert 'instances.json image 3 (id 12): no objects: add them, or set empty to "drop"' in line
    manifest = coco.prepare(tmp_path / "drop", source, [], IntakeOptions(empty="drop"))
    assert (manifest.counts["empty"], manifest.counts["kept"]) == (1, {"train": 2})
    coco.prepare(tmp_path / "keep", source, [], IntakeOptions(empty="keep"))
    assert coco.load(tmp_path / "keep", "train")[2].targets == ()


def test_boxes_without_area_are_dropped_and_their_pictures_stay(tmp_path):
    flat = [{"id": 5 + k, "image_id": 10, "category_id": 1, "bbox": box} for k, box in enumerate(FLAT)]
    manifest = coco.prepare(tmp_path / "out", instances(tmp_path, annotations=flat), [], IntakeOptions())
    assert manifest.sources[0]["without_area"] == len(FLAT)
    assert [len(record.targets) for record in coco.load(tmp_path / "out", "train")] == [2, 2]
    alone = {"id": 9, "image_id": 12, "category_id": 1, "bbox": FLAT[0]}
    only = instances(tmp_path, images=[IMAGE], annotations=[alone])
    _, line = errors_of(lambda: coco.prepare(tmp_path / "only", only, [], IntakeOptions()))
    assert "image 3 (id 12): no objects" in line


def test_crowds_and_areas_are_kept_in_their_order(tmp_path):
    more = [
        {"id": 5, "image_id": 10, "category_id": 18, "bbox": [9, 9, 50, 40], "iscrowd": 1, "area": 1234.5},
        {"id": 6, "image_id": 10, "category_id": 18, "bbox": [0, 0, 20, 30], "iscrowd": 0, "area": 77},
        {"id": 7, "image_id": 10, "category_id": 18, "bbox": [5, 5, 20, 30], "area": None},
        {"id": 8, "image_id": 11, "category_id": 18, "bbox": [5, 5, 0, 30], "iscrowd": 1},
    ]
    manifest = coco.prepare(tmp_path / "out", instances(tmp_path, annotations=more), [], IntakeOptions())
    assert (manifest.sources[0]["crowds"], manifest.sources[0]["without_area"]) == (2, 1)
    assert coco.load(tmp_path / "out", "train")[0].targets[2:] == (
        Target("dog", (9, 9, 59, 49), area=1234.5, crowd=True),
        Target("dog", (0, 0, 20, 30), area=77),
        Target("dog", (5, 5, 25, 35)),
    )
    row = json.loads((tmp_path / "out" / "train.jsonl").read_text().splitlines()[0])
    assert [target.keys() - {"label", "box"} for target in row["targets"]] == [
        *(set(), set()),
        *({"area", "crowd"}, {"area"}, set()),
    ]


def test_a_picture_that_has_only_crowds_is_one_without_objects(tmp_path):
    crowd = {"id": 9, "image_id": 12, "category_id": 1, "bbox": [0, 0, 99, 99], "iscrowd": 1}
    source = instances(tmp_path, images=[IMAGE], annotations=[crowd])
    _, line = errors_of(lambda: coco.prepare(tmp_path / "out", source, [], IntakeOptions()))
    assert "image 3 (id 12): no objects" in line
    manifest = coco.prepare(tmp_path / "drop", source, [], IntakeOptions(empty="drop"))
    assert (manifest.counts["empty"], manifest.counts["kept"]) == (1, {"train": 2})
    coco.prepare(tmp_path / "keep", source, [], IntakeOptions(empty="keep"))
    assert coco.load(tmp_path / "keep", "train")[2].targets == (Target("person", (0, 0, 99, 99), crowd=True),)


@pytest.mark.parametrize("side", [640.0, 640])
def test_a_side_may_be_written_with_a_point(tmp_path, side):
    image = {"id": 12, "file_name": "2.png", "width": side, "height": 480.0}
    coco.prepare(tmp_path / "out", instances(tmp_path, images=[image]), [], IntakeOptions(empty="keep"))
    assert coco.load(tmp_path / "out", "train")[2].size == SIZE


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("annotations", {**OBJECT, "image_id": 99}, r"annotation 5 \(id 9\): key image_id is 99, which is not in this"),
        ("annotations", {**OBJECT, "category_id": 7}, "key category_id is 7"),
        ("annotations", {**OBJECT, "id": 1}, "its id stands twice"),
        ("annotations", {**OBJECT, "bbox": [0, 0, -3, 9]}, r"image 1 \(id 10\): .*is reversed"),
        ("annotations", {**OBJECT, "bbox": None}, "key bbox of annotation 9 is 'None'"),
        ("annotations", {**OBJECT, "bbox": None, "iscrowd": 1}, "key bbox of annotation 9 is 'None'"),
        ("annotations", {**OBJECT, "iscrowd": "0"}, r"annotation 5 \(id 9\): key iscrowd is '0': must be 0 or 1"),
        (
            "annotations",
            {**OBJECT, "area": "81"},
            "key area of annotation 9 is '81': must be a number of",
        ),
        ("annotations", {**OBJECT, "area": -1}, "key area of annotation 9 is -1"),
        ("annotations", {**OBJECT, "area": float("inf")}, "key area of annotation 9 is inf"),
        ("annotations", {**OBJECT, "area": True}, "key area of annotation 9 is True"),
        ("annotations", {"image_id": 10}, "annotations entry 5 must be an object with an id"),
        ("images", {**IMAGE, "id": 10}, "image id 10 stands 2 times"),
        ("images", {**IMAGE, "width": 480, "height": 640}, "is 640 x 480 once turned upright, the source says 480 x"),
        (
            "images",
            {**IMAGE, "width": 640.5},
            r"image 3 \(id 12\): key width is 640.5: must be a whole number of pixels",
        ),
        ("images", {**IMAGE, "height": True}, "key height is True"),
        ("images", {**IMAGE, "height": float("inf")}, "key height is inf"),
        ("images", {**IMAGE, "height": None}, "key height is None"),
        ("images", {**IMAGE, "file_name": None}, r'expected \{"id"'),
        ("categories", {"id": 3, "name": "dog"}, "categories entry 3 must have an id and a name of its own"),
        ("categories", {"id": 3, "name": ""}, "categories entry 3"),
    ],
)
def test_a_bad_entry_of_coco_is_named(tmp_path, key, value, message):
    source = instances(tmp_path, **{key: [value]})
    with pytest.raises(DataError, match=message) as caught:
        coco.prepare(tmp_path / "out", source, [], IntakeOptions(empty="keep"))
    assert "instances.json" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_coco_files_must_fit_together(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    train, val = instances(tmp_path / "a"), instances(tmp_path / "b", categories=[{"id": 3, "name": "cat"}])
    with pytest.raises(DataError, match="its categories are not those of"):
        coco.prepare(tmp_path / "out", train, [f"val={val}"], IntakeOptions())
    with pytest.raises(DataError, match="key images must be a list: is this an instances file"):
        coco.prepare(tmp_path / "out", write(tmp_path / "x.json", [1]), [], IntakeOptions())
    with pytest.raises(DataError, match="give an instances file"):
        coco.prepare(tmp_path / "out", str(tmp_path / "none.json"), [], IntakeOptions())
