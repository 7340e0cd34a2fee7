"""Scenes: what the record says is what is drawn, and no split holds a scene of another."""

import dataclasses
import itertools
import pickle
import random
import time
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from data.drawn.scenes import (
    RGB,
    Line,
    Objects,
    Scene,
    ScenePicture,
    Thing,
    Words,
    draw,
    problems,
    render,
    split_of_scene,
)
from stepstack.config import ConfigError
from stepstack.scoring.vision import spatial

IDS = ["grounding", "by colour", "counting", "detection", "words", "lines"]
SMALL = {"train": 300, "select": 40, "test": 40}
ALL_COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan", "orange", "black")
ALL_SHAPES = ("circle", "square", "triangle", "diamond", "cross")
CONFIGS = [
    Objects(**SMALL, objects=(1, 3)),
    Objects(**SMALL, objects=(1, 3), named_by="colour", grid=7, colours=ALL_COLOURS, shapes=ALL_SHAPES),
    Objects(**SMALL, task="counting", objects=(1, 5), count=(0, 4), sides=(6, 14), background="black"),
    Objects(**SMALL, task="detection", objects=(0, 4), size=(70, 42), colours=ALL_COLOURS, shapes=ALL_SHAPES),
    Words(**SMALL),
    Words(**SMALL, size=(140, 56), lines=(1, 2), words=(1, 2), characters="abcdefghijkmnpqrstuvwxyz", heights=(14, 18)),
]


def drawn_boxes(picture: Image.Image, colour: str) -> list[tuple[int, int, int, int]]:
    """Tight boxes of the connected regions of a colour, from the pixels alone."""
    free = {(int(x), int(y)) for y, x in np.argwhere((np.array(picture) == RGB[colour]).all(-1))}
    boxes = []
    while free:
        region, todo = [], [free.pop()]
        while todo:
            x, y = todo.pop()
            region.append((x, y))
            near = {(x + dx, y + dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1)} & free
            free -= near
            todo.extend(near)
        xs, ys = zip(*region, strict=True)
        boxes.append((min(xs), min(ys), max(xs) + 1, max(ys) + 1))
    return sorted(boxes)


@pytest.mark.parametrize("shape", ALL_SHAPES)
def test_a_form_fills_its_box(shape):
    for side, corner in itertools.product(range(4, 40), ((0, 0), (3, 11))):
        x, y = corner
        box = (x, y, x + side, y + side)
        assert drawn_boxes(render(Scene((56, 56), "white", (Thing(shape, "red", box),))), "red") == [box]


@pytest.mark.parametrize("cfg", CONFIGS[:4], ids=IDS[:4])
def test_targets_are_what_the_pixels_show(cfg):
    for record in problems(cfg, "train")[:100]:
        picture = record.pictures[0].image()
        assert (picture.size, picture.mode, record.size, record.space) == (cfg.size, "RGB", cfg.size, "pixels")
        scene = record.pictures[0].scene
        for colour in cfg.colours:
            assert drawn_boxes(picture, colour) == sorted(t.box for t in scene.things if t.colour == colour)
        assert {tuple(c) for c in np.array(picture).reshape(-1, 3)} <= {
            RGB[colour] for colour in (cfg.background, *cfg.colours)
        }
        boxes = [thing.box for thing in scene.things]
        assert all(spatial.iou(a, b) == 0 for a, b in itertools.combinations(boxes, 2))
        assert all(side % cfg.grid == 0 for box in boxes for side in box)
        assert all(spatial.check(target.box, record.size) is None for target in record.targets)


def test_grounding_asks_for_exactly_one_object():
    for cfg in CONFIGS[:2]:
        records = problems(cfg, "train")
        for record in records:
            names = [
                thing.colour if cfg.named_by == "colour" else f"{thing.colour} {thing.shape}"
                for thing in record.pictures[0].scene.things
            ]
            assert names.count(record.question) == 1
            (target,) = record.targets
            assert target.label == record.question
            assert target.box == record.pictures[0].scene.things[names.index(record.question)].box
        assert {len(r.pictures[0].scene.things) for r in records} == {1, 2, 3}


def test_counting_counts_one_kind_among_others():
    records = problems(CONFIGS[2], "train")
    for record in records:
        things = record.pictures[0].scene.things
        right = [t.box for t in things if f"{t.colour} {t.shape}" == record.question]
        assert record.count == len(right) == len(record.targets)
        assert [t.box for t in record.targets] == right
    assert {record.count for record in records} == {0, 1, 2, 3, 4}
    assert any(len(r.pictures[0].scene.things) > r.count for r in records)


def test_detection_lists_every_object():
    records = problems(CONFIGS[3], "train")
    for record in records:
        things = record.pictures[0].scene.things
        assert [(t.label, t.box) for t in record.targets] == [(f"{t.colour} {t.shape}", t.box) for t in things]
        assert {t.label for t in record.targets} <= set(record.question.split(", "))
    assert len(records[0].question.split(", ")) == 40


@pytest.mark.parametrize("cfg", CONFIGS[4:], ids=IDS[4:])
def test_words_lie_whole_within_the_picture(cfg):
    records = problems(cfg, "train")
    for record in records[:100]:
        scene = record.pictures[0].scene
        assert record.text == "\n".join(line.text for line in scene.lines)
        assert set(record.text) <= {*cfg.characters, " ", "\n"}
        far = Scene(
            (cfg.size[0] + 60, cfg.size[1] + 60),
            scene.background,
            lines=tuple(
                dataclasses.replace(line, corner=(line.corner[0] + 30, line.corner[1] + 30)) for line in scene.lines
            ),
        )
        ink = np.argwhere((np.array(render(far)) != RGB["white"]).any(-1))
        (top, left), (bottom, right) = ink.min(0) - 30, ink.max(0) - 30
        assert 0 <= left < right < cfg.size[0]
        assert 0 <= top < bottom < cfg.size[1]
        assert abs(top - scene.lines[0].corner[1]) <= 1
    assert {len(r.pictures[0].scene.lines) for r in records} == set(range(cfg.lines[0], cfg.lines[1] + 1))


@pytest.mark.parametrize("cfg", CONFIGS, ids=IDS)
def test_no_split_holds_a_scene_of_another(cfg):
    splits = {name: problems(cfg, name) for name in ("train", "select", "test")}
    assert {name: len(records) for name, records in splits.items()} == SMALL
    scenes = {name: {r.pictures[0].scene for r in records} for name, records in splits.items()}
    assert {name: len(split_scenes) for name, split_scenes in scenes.items()} == SMALL
    pixels = {name: {render(s).tobytes() for s in split_scenes} for name, split_scenes in scenes.items()}
    for one, other in itertools.combinations(splits, 2):
        assert not scenes[one] & scenes[other]
        assert not pixels[one] & pixels[other]
    other_seed = problems(dataclasses.replace(cfg, seed=1), "train")
    assert not {r.pictures[0].scene for r in other_seed} & scenes["test"]
    assert other_seed != splits["train"]


def test_a_held_out_text_is_held_out_at_every_place_and_size():
    near = Scene((56, 56), "white", lines=(Line("A7", "black", (2, 3), 16),))
    far = Scene((112, 28), "yellow", lines=(Line("A7", "red", (40, 9), 20),))
    assert split_of_scene(near) == split_of_scene(far)
    texts = {name: {r.text for r in problems(Words(**SMALL, length=(2, 2)), name)} for name in SMALL}
    assert not texts["train"] & texts["test"]
    assert not texts["train"] & texts["select"]


def test_a_tenth_is_held_out_for_each_purpose():
    rng = random.Random(0)
    shares = Counter(split_of_scene(draw(rng, CONFIGS[0])[0]) for _ in range(3000))
    assert shares["test"] == pytest.approx(300, abs=60)
    assert shares["select"] == pytest.approx(300, abs=60)


def test_the_same_config_gives_the_same_records():
    for cfg in CONFIGS:
        first, second = problems(cfg, "select"), problems(cfg, "select")
        assert first == second
        assert [r.index for r in first] == list(range(40))
        assert first[0].pictures[0].image().tobytes() == second[0].pictures[0].image().tobytes()
    known = problems(CONFIGS[0], "train")[0]
    assert hash(known.pictures[0]) == hash(ScenePicture(known.pictures[0].scene))
    assert pickle.loads(pickle.dumps(known)) == known


def test_scenes_do_not_change_between_versions():
    """Which scenes are held out must stay: a published figure is of these."""
    scenes = [Scene((56, 56), "white", (Thing("circle", "red", (x, 4, x + 17, 21)),)) for x in range(4)]
    assert str(scenes[3]) == "(56, 56) white; red circle (3, 4, 20, 21)"
    assert [split_of_scene(scene) for scene in scenes] == ["train", "select", "test", "train"]
    first = problems(Objects(train=1, objects=(1, 1)), "train")[0]
    assert (first.question, first.targets[0].box) == ("red circle", (24, 25, 46, 47))
    assert problems(Words(test=1), "test")[0].text == "UMT"


def test_colours_can_be_told_apart():
    for one, other in itertools.combinations(RGB.values(), 2):
        assert np.linalg.norm(np.subtract(one, other)) > 100, (one, other)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Objects(objects=(3, 1)), r"objects=\(3, 1\): the first must not be above the second"),
        (lambda: Objects(background="red"), "background must not be one of the colours"),
        (lambda: Objects(sides=(15, 20), grid=14), "no multiple of grid=14"),
        (lambda: Objects(sides=(60, 70)), "fits into"),
        (lambda: Objects(objects=(0, 1)), "at least 1"),
        (lambda: Objects(colours=("red",), shapes=("circle",)), "with one name only"),
        (lambda: Objects(task="counting", count=(0, 9)), "goes beyond objects"),
        (lambda: Words(characters="a b"), "must not hold a space"),
        (lambda: Words(characters="é"), "printable ASCII"),
        (lambda: Words(length=(3, 2)), "length="),
    ],
)
def test_impossible_configs_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_yaml_values_are_strict():
    config = TypeAdapter(Objects | Words)
    assert config.validate_json('{"type": "objects", "sides": [7, 14], "shapes": ["cross"]}').shapes == ("cross",)
    with pytest.raises(ValidationError, match="blob"):
        config.validate_json('{"type": "objects", "shapes": ["blob"]}')
    with pytest.raises(ValidationError, match=r"extra_forbidden|Unexpected keyword"):
        config.validate_json('{"type": "words", "colour": "red"}')


def test_too_much_for_the_picture_or_the_split_is_said():
    with pytest.raises(ConfigError, match=r"\(56, 56\): too small"):
        problems(Objects(objects=(9, 9), sides=(28, 28)), "train")
    with pytest.raises(ConfigError, match=r"\(56, 56\): too small"):
        problems(Words(length=(12, 12)), "train")
    with pytest.raises(ConfigError, match=r"data.test=500: only \d+ such scenes were found"):
        problems(Objects(objects=(1, 1), sides=(28, 28), grid=14, test=500), "test")


def test_scenes_are_drawn_in_a_fraction_of_a_millisecond():
    records = problems(CONFIGS[2], "train")
    start = time.process_time()
    for record in records:
        record.pictures[0].image()
    assert (time.process_time() - start) / len(records) < 2e-3  # measured: 0.02 ms
