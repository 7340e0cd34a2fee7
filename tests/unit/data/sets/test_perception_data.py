"""Preparing published perception data: wrong conventions, bad pictures and bad rows are named, nothing is half done."""

import hashlib
import json
import os
import pickle
import struct
import zlib
from pathlib import Path

import datasets
import pytest
from PIL import Image

from data.errors import DataError
from data.media.images import BytesPicture, FilePicture, Target
from data.prepare import intake
from data.prepare.config import IntakeOptions
from data.prepare.manifest import read_manifest
from data.sets import coco, orz_math, page_ocr, pixmo_count, refcoco
from stepstack.scoring.vision import spatial
from tests.unit.data.photos import SIZE, errors_of, expressions, photos, png, some_boxes, write

THOUSAND, PIXELS = IntakeOptions(space="thousand"), IntakeOptions(space="pixels")
CUP = {"solution": [64, 48, 320, 240], "normalized_solution": [100, 100, 500, 500]}


# RefCOCO


def test_refcoco_in_its_published_forms(tmp_path):
    photos(tmp_path / "coco", 3)
    train = write(
        tmp_path / "train.json",
        [
            {"image": "0.png", "problem": "left man", "solution": "[100, 200, 500, 1000]"},
            {"image": "1.png", "problem": "dog", "solution": [0, 0, 250.5, 400]},
            {"image": "1.png", "problem": "cat", "solution": "(10,20,30,40)"},
        ],
    )
    val = write(
        tmp_path / "refcoco_val.jsonl",
        [
            {"image": "2.png", "problem": "cup", **CUP},
        ],
    )
    out = tmp_path / "out"
    manifest = refcoco.prepare(out, train, [val], IntakeOptions(images=(str(tmp_path / "coco"),)))
    first, dog, cat = refcoco.load(out, "train")
    assert (first.index, first.task, first.question, first.space, first.size) == (
        0,
        "grounding",
        "left man",
        "thousand",
        SIZE,
    )
    assert first.targets == (Target("left man", (100, 200, 500, 1000)),)
    assert spatial.convert(first.targets[0].box, first.space, "pixels", first.size) == (64, 96, 320, 480)
    assert (dog.targets[0].box, cat.targets[0].box) == ((0, 0, 250.5, 400), (10, 20, 30, 40))
    assert first.pictures[0].image().size == SIZE
    assert pickle.loads(pickle.dumps(first)) == first
    assert len({hash(r.pictures[0]) for r in (first, dog, cat)}) == 2
    assert [r.targets[0].box for r in refcoco.load(out, "refcoco_val")] == [(100, 100, 500, 500)]
    assert manifest == read_manifest(out / "manifest.json", "refcoco")
    assert manifest.counts["kept"] == {"train": 3, "refcoco_val": 1}
    assert manifest.sources[0]["sha256"] == {"train.json": hashlib.sha256(Path(train).read_bytes()).hexdigest()}
    assert sorted(os.listdir(out)) == ["manifest.json", "refcoco_val.jsonl", "train.jsonl"]
    row = json.loads((out / "train.jsonl").read_text().splitlines()[0])
    assert row["pictures"] == [
        {"root": 0, "path": "0.png", "sha256": hashlib.sha256((tmp_path / "coco" / "0.png").read_bytes()).hexdigest()}
    ]


def test_evals_hold_both_spaces_and_they_must_agree(tmp_path):
    photos(tmp_path, 2)
    both = {"image": "0.png", "problem": "cup", **CUP}
    source = write(tmp_path / "val.json", [both])
    for space, box in (("pixels", (64, 48, 320, 240)), ("thousand", (100, 100, 500, 500))):
        refcoco.prepare(tmp_path / space, source, [], IntakeOptions(space=space))
        (record,) = refcoco.load(tmp_path / space, "train")
        assert (record.space, record.targets[0].box) == (space, box)
    bad = write(tmp_path / "bad.json", [{**both, "normalized_solution": [100, 100, 510, 500]}])
    for space in ("pixels", "thousand"):
        _, line = errors_of(lambda space=space: refcoco.prepare(tmp_path / "out", bad, [], IntakeOptions(space=space)))
        assert "bad.json row 1: " in line
        assert "are two boxes in a picture of 640 x 480, and should be one" in line


def test_a_few_wrong_boxes_are_bad_rows_and_not_a_convention(tmp_path):
    boxes = some_boxes(30)
    boxes[3], boxes[7], boxes[8], boxes[9] = [10, 10, 700, 20], [50, 60, 40, 80], [5, 5, 5, 50], [0, 0, float("inf"), 9]
    source = expressions(tmp_path, boxes)
    first, *lines = errors_of(lambda: refcoco.prepare(tmp_path / "out", source, [], IntakeOptions(space="pixels")))
    assert first == "4 bad rows, nothing written (drop_bad leaves them out):"
    for line, row, words in zip(
        lines, (4, 8, 9, 10), ("reaches outside", "is reversed", "no area", "not finite"), strict=True
    ):
        assert f"train.json row {row}: " in line
        assert words in line
    assert not (tmp_path / "out").exists()
    manifest = refcoco.prepare(tmp_path / "out", source, [], IntakeOptions(space="pixels", drop_bad=True))
    assert (manifest.counts["read"], manifest.counts["bad"], manifest.counts["kept"]) == (30, 4, {"train": 26})
    assert "reaches outside" in manifest.counts["dropped"][0]
    assert [r.index for r in refcoco.load(tmp_path / "out", "train")] == list(range(26))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"solution": "[1, 2, 3]"}, r"key solution is '\[1, 2, 3\]': must be four numbers"),
        ({"solution": "__import__('os')"}, r"must be four numbers"),
        ({"solution": [1, 2, 3, True]}, r"must be four numbers"),
        ({"solution": None}, r"must be four numbers"),
        ({"problem": " "}, r"a label is empty"),
        ({"problem": 4}, r"key problem must be text, not int"),
        ({"image": "none.png"}, r"the picture none.png is not below .*: set images to the folder that holds it"),
        ({"image": 7}, r"key image must be a path or \{"),
        ({"image": "text.png"}, r"text.png is no whole picture \(cannot identify image file"),
        ({"image": "cut.png"}, r"cut.png is no whole picture \(.*: get it again, or remove the row"),
        ({"image": "cut.jpg"}, r"cut.jpg is no whole picture \(.*truncated"),
        ({"image": "bomb.png"}, r"bomb.png is no whole picture \(Image size .* could be decompression bomb"),
        ({"image": "large.png"}, r"large.png has 1000 x 400 pixels, over max_pixels=320000"),
        ({"image": "empty.png"}, r"empty.png is no whole picture"),
    ],
)
def test_a_bad_row_is_named(tmp_path, change, message):
    photos(tmp_path, 1)
    noise = Image.effect_noise((300, 200), 80)
    noise.save(tmp_path / "whole.jpg")
    noise.save(tmp_path / "whole.png")
    for suffix in ("jpg", "png"):
        whole = (tmp_path / f"whole.{suffix}").read_bytes()
        (tmp_path / f"cut.{suffix}").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("not found")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "large.png").write_bytes(png((1000, 400)))
    (tmp_path / "bomb.png").write_bytes(claimed(50_000, 50_000))
    good = {"image": "0.png", "problem": "x", "solution": [10, 10, 50, 50]}
    source = write(tmp_path / "train.jsonl", [good, {**good, "problem": "y", **change}])
    first, *lines = errors_of(
        lambda: refcoco.prepare(tmp_path / "out", source, [], IntakeOptions(space="thousand", max_pixels=320_000))
    )
    assert first.startswith("1 bad rows, nothing written")
    assert f"{source} line 2: " in lines[0]
    with pytest.raises(DataError, match=message):
        refcoco.prepare(tmp_path / "out", source, [], IntakeOptions(space="thousand", max_pixels=320_000))
    assert not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".out")]


def claimed(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose head claims a size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_a_reason_is_said_once_and_only_twenty_reasons(tmp_path):
    photos(tmp_path, 1)
    row = {"image": "0.png", "problem": "", "solution": [1, 2, 300, 4]}
    same = write(tmp_path / "t.json", [row] * 25)
    head, line = errors_of(lambda: refcoco.prepare(tmp_path / "out", same, [], THOUSAND))
    assert head.startswith("25 bad rows")
    assert line.endswith("t.json row 4 and 21 more)")
    others = write(tmp_path / "o.json", [row | {"image": f"{number}.jpg", "problem": "a"} for number in range(25)])
    lines = errors_of(lambda: refcoco.prepare(tmp_path / "out", others, [], THOUSAND))
    assert (len(lines), lines[-1]) == (22, "... and 5 other reasons")


def test_repeated_questions_are_named(tmp_path):
    photos(tmp_path, 1)
    row = {"image": "0.png", "problem": "x", "solution": [10, 10, 50, 50]}
    source = write(tmp_path / "t.json", [row, row, {**row, "solution": [10, 10, 60, 60]}, {**row, "problem": "y"}])
    _, second, third = errors_of(lambda: refcoco.prepare(tmp_path / "out", source, [], THOUSAND))
    assert second.endswith("t.json row 2: repeats " + f"{source} row 1: remove one of them")
    assert "t.json row 3: asks the same of the same picture as" in third
    manifest = refcoco.prepare(tmp_path / "out", source, [], IntakeOptions(space="thousand", drop_bad=True))
    assert (manifest.counts["duplicates"], manifest.counts["bad"], manifest.counts["kept"]["train"]) == (2, 2, 2)


def test_pictures_of_an_eval_are_not_trained_on(tmp_path):
    photos(tmp_path, 2)
    (tmp_path / "copy.png").write_bytes((tmp_path / "0.png").read_bytes())
    row = {"image": "0.png", "problem": "x", "solution": [10, 10, 50, 50]}
    train = write(tmp_path / "t.json", [{**row, "image": "copy.png"}, {**row, "image": "1.png"}])
    evals = write(tmp_path / "val.json", [{**row, "problem": "other"}])
    manifest = refcoco.prepare(tmp_path / "out", train, [evals], THOUSAND)
    assert (manifest.counts["contaminated"], manifest.counts["kept"]) == (1, {"train": 1, "val": 1})
    digests = [{r.pictures[0].sha256 for r in refcoco.load(tmp_path / "out", split)} for split in ("train", "val")]
    assert not digests[0] & digests[1]


# Pictures


def test_pictures_are_upright_and_rgb(tmp_path):
    picture = Image.new("L", (40, 20), 0)
    picture.paste(255, (0, 0, 10, 20))  # a light left edge
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    picture.save(tmp_path / "a.png", exif=exif)
    output = FilePicture(str(tmp_path / "a.png")).image()
    assert (output.size, output.mode) == ((20, 40), "RGB")
    assert (output.getpixel((5, 2)), output.getpixel((5, 35))) == ((255, 255, 255), (0, 0, 0))
    assert BytesPicture((tmp_path / "a.png").read_bytes()).image().tobytes() == output.tobytes()
    source = write(tmp_path / "t.json", [{"image": "a.png", "problem": "edge", "solution": [0, 0, 20, 10]}])
    refcoco.prepare(tmp_path / "out", source, [], IntakeOptions(space="pixels"))
    assert refcoco.load(tmp_path / "out", "train")[0].size == (20, 40)


def test_a_changed_or_moved_picture_is_refused(tmp_path):
    source = expressions(tmp_path / "a", some_boxes(2))
    refcoco.prepare(tmp_path / "out", source, [], IntakeOptions(space="pixels"))
    (tmp_path / "a").rename(tmp_path / "b")
    with pytest.raises(DataError, match=r"0\.png does not exist: set images to the folders"):
        refcoco.load(tmp_path / "out", "train")
    with pytest.raises(DataError, match=r"images: 2 folders, .* was prepared with 1"):
        refcoco.load(tmp_path / "out", "train", ["x", "y"])
    records = refcoco.load(tmp_path / "out", "train", [str(tmp_path / "b")])
    assert records[1].pictures[0].image().size == SIZE
    (tmp_path / "b" / "1.png").write_bytes(png(SIZE, (1, 2, 3)))
    with pytest.raises(DataError, match=r"1\.png: sha256 is .* it was .* prepare it again"):
        records[1].pictures[0].image()
    (tmp_path / "b" / "1.png").unlink()
    with pytest.raises(DataError, match=r"1\.png does not exist"):
        records[1].pictures[0].image()
    with pytest.raises(DataError, match="bytes is no whole picture"):
        BytesPicture(b"none").image()


def test_copied_pictures_need_no_source(tmp_path):
    source = expressions(tmp_path / "a", some_boxes(3))
    refcoco.prepare(tmp_path / "out", source, [], IntakeOptions(space="pixels", copy=True))
    (tmp_path / "a").rename(tmp_path / "gone")
    (tmp_path / "out").rename(tmp_path / "moved")
    records = refcoco.load(tmp_path / "moved", "train")
    assert [r.pictures[0].image().getpixel((0, 0)) for r in records] == [(0, 0, 7), (1, 0, 7), (2, 0, 7)]
    assert len(os.listdir(tmp_path / "moved" / "images")) == 3


def test_each_source_has_its_own_pictures_and_images_are_searched_in_order(tmp_path):
    """Two folders that both have a 0.png."""
    one = expressions(tmp_path / "one", some_boxes(1))
    two = expressions(tmp_path / "two", some_boxes(2), "val.json")
    (tmp_path / "two" / "0.png").write_bytes(png(SIZE, (9, 9, 9)))
    refcoco.prepare(tmp_path / "out", one, [two], IntakeOptions(space="pixels"))
    assert refcoco.load(tmp_path / "out", "val")[0].pictures[0].path == str(tmp_path / "two" / "0.png")
    assert refcoco.load(tmp_path / "out", "train")[0].pictures[0].path == str(tmp_path / "one" / "0.png")
    both = IntakeOptions(space="pixels", images=(str(tmp_path / "one"), str(tmp_path / "two")))
    refcoco.prepare(tmp_path / "both", two, [], both)
    assert [r.pictures[0].path for r in refcoco.load(tmp_path / "both", "train")] == [
        str(tmp_path / "one" / "0.png"),
        str(tmp_path / "two" / "1.png"),
    ]
    absolute = write(
        tmp_path / "one" / "abs.json",
        [
            {"image": str(tmp_path / "one" / "0.png"), "problem": "x", "solution": [10, 10, 50, 50]},
            {"image": str(tmp_path / "two" / "0.png"), "problem": "x", "solution": [10, 10, 50, 50]},
        ],
    )
    _, line = errors_of(lambda: refcoco.prepare(tmp_path / "abs", absolute, [], IntakeOptions(space="pixels")))
    assert f"row 2: the picture {tmp_path / 'two' / '0.png'} is not below {tmp_path / 'one'}" in line


def test_pictures_inside_of_parquet_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [
        {
            "image": {"bytes": png(SIZE, (colour, 0, 0)), "path": None},
            "problem": problem,
            "solution": "[1, 2, 300, 400]",
        }
        for colour, problem in ((0, "a"), (1, "b"), (1, "c"))
    ]
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "problem": datasets.Value("string"),
            "solution": datasets.Value("string"),
        }
    )
    (tmp_path / "refs").mkdir()
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "refs" / "train.parquet")
    manifest = refcoco.prepare(tmp_path / "out", f"hf:{tmp_path / 'refs'}@train", [], THOUSAND)
    records = refcoco.load(tmp_path / "out", "train")
    assert [r.pictures[0].image().getpixel((0, 0)) for r in records] == [(0, 0, 0), (1, 0, 0), (1, 0, 0)]
    assert len(os.listdir(tmp_path / "out" / "images")) == 2
    assert manifest.sources[0]["rows"] == 3
    assert manifest == refcoco.prepare(tmp_path / "again", f"hf:{tmp_path / 'refs'}@train", [], THOUSAND)


def test_the_same_input_gives_the_same_bytes(tmp_path):
    source = expressions(tmp_path / "a", some_boxes(5))
    for name in ("one", "two"):
        refcoco.prepare(tmp_path / name, source, [], IntakeOptions(space="pixels"))
    for name in ("manifest.json", "train.jsonl"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    with pytest.raises(DataError, match="exists: remove it"):
        refcoco.prepare(tmp_path / "one", source, [], IntakeOptions(space="pixels"))
    refcoco.prepare(tmp_path / "one", source, [], IntakeOptions(space="pixels", copy=True), overwrite=True)
    assert (tmp_path / "one" / "images").is_dir()


def test_a_folder_of_other_data_is_refused(tmp_path):
    source = expressions(tmp_path / "a", some_boxes(2))
    refcoco.prepare(tmp_path / "out", source, [], IntakeOptions(space="pixels"))
    with pytest.raises(DataError, match="holds data of refcoco, not of coco"):
        coco.load(tmp_path / "out", "train")
    with pytest.raises(DataError, match="holds data of refcoco, not of orz_math"):
        orz_math.load(tmp_path / "out", "train")
    with pytest.raises(DataError, match="no split 'val'; there are train"):
        refcoco.load(tmp_path / "out", "val")
    with pytest.raises(DataError, match="prepare the data first"):
        refcoco.load(tmp_path / "elsewhere", "train")


# PixMo-Count


def test_pixmo_count_in_its_published_forms(tmp_path):
    names = photos(tmp_path, 4)
    digest = hashlib.sha256((tmp_path / names[2]).read_bytes()).hexdigest()
    (tmp_path / names[2]).rename(tmp_path / digest)
    points = [{"x": 10, "y": 20}, {"x": 600.5, "y": 470}]
    of_the_hub = {"image_sha256": digest, "image_url": "http://x", "label": "dogs", "count": 2}
    train = write(
        tmp_path / "train.jsonl",
        [
            {"image_path": "0.png", "question": "birds", "ground_truth": 2, "points": points},
            {"image": "1.png", "label": "cups", "count": "1", "clicks": [[5, 6]]},
            {**of_the_hub, "points": {"x": [1, 2], "y": [3, 4]}},
            {"image": "1.png", "label": "forks", "count": 0, "points": []},
        ],
    )
    evals = write(tmp_path / "test.jsonl", [{"image_path": "3.png", "question": "people", "ground_truth": 7}])
    pixmo_count.prepare(tmp_path / "out", train, [f"test540={evals}"], PIXELS)
    birds, cups, dogs, forks = pixmo_count.load(tmp_path / "out", "train")
    assert (birds.task, birds.question, birds.count, birds.space) == ("counting", "birds", 2, "pixels")
    assert birds.targets == (Target("birds", point=(10, 20)), Target("birds", point=(600.5, 470)))
    assert (cups.count, cups.targets, dogs.count) == (1, (Target("cups", point=(5, 6)),), 2)
    assert (forks.count, forks.targets) == (0, ())
    (people,) = pixmo_count.load(tmp_path / "out", "test540")
    assert (people.count, people.targets) == (7, ())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 3}, "the count is 3, but 1 objects are marked"),
        ({"count": -1}, "key count is -1: must be a whole number"),
        ({"count": 1.5}, "key count is 1.5: must be a whole number"),
        ({"count": None}, "key ground_truth or count is missing"),
        ({"points": None}, "no objects are marked: training needs their points or boxes"),
        ({"points": [[700, 10]]}, "lies outside of it"),
        ({"points": [[1, 2, 3]]}, r"key points\[0\] is '\[1, 2, 3\]': must be"),
        ({"points": [{"x": 4}]}, r"key points\[0\] is "),
        ({"points": "many"}, "key points must be a list of points"),
        ({"label": ""}, "a label is empty"),
        ({"image": None}, "key image or image_path or image_sha256 is missing"),
    ],
)
def test_a_bad_counting_row_is_named(tmp_path, change, message):
    photos(tmp_path, 1)
    row = {"image": "0.png", "label": "x", "count": 1, "points": [[100, 200]], **change}
    source = write(tmp_path / "t.json", [row])
    with pytest.raises(DataError, match=message) as caught:
        pixmo_count.prepare(tmp_path / "out", source, [], PIXELS)
    assert "t.json row 1: " in str(caught.value)


# PageOCR


def test_page_ocr_in_its_published_form(tmp_path):
    photos(tmp_path, 2)
    turns = [
        {"from": "human", "value": "<image>\nOCR this image: "},
        {"from": "gpt", "value": "Tiny  text\nof a page."},
    ]
    source = write(tmp_path / "t.json", [{"image": "0.png", "conversations": turns}])
    page_ocr.prepare(tmp_path / "out", source, [], IntakeOptions())
    (record,) = page_ocr.load(tmp_path / "out", "train")
    assert (record.task, record.question, record.text) == ("ocr", "", "Tiny  text\nof a page.")
    assert (record.targets, record.size, record.pictures[0].image().size) == ((), SIZE, SIZE)
    rows = [
        {"image": "0.png", "conversations": turns[:1]},
        {"image": "0.png", "conversations": [turns[0], {"from": "gpt", "value": " "}]},
        {"image": "1.png", "conversations": [turns[0], {"from": "gpt"}]},
        {"conversations": turns},
    ]
    bad = write(tmp_path / "bad.json", rows)
    _, *lines = errors_of(lambda: page_ocr.prepare(tmp_path / "other", bad, [], IntakeOptions()))
    for number, words in enumerate(
        ("two turns", "the text is empty", "key conversations[1].value is missing", "key image is missing"), 1
    ):
        assert f"bad.json row {number}: " in " ".join(lines)
        assert any(words in line for line in lines)


def test_opening_does_not_hide_other_errors(tmp_path):
    with pytest.raises(DataError, match="over max_pixels=99"):
        intake.decode(png((10, 10)), "small.png", 99)
    assert intake.decode(png((10, 10)), "small.png", 100).image.size == (10, 10)
