"""The perception recipe's own parts: gold, rewards and figures, demonstrations, prompts, average precision."""

from __future__ import annotations

import contextlib
import io
import json
import random
from pathlib import Path

import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from data.drawn.scenes import Objects, Words, problems
from data.media.images import Record, Target
from data.prepare.config import IntakeOptions
from data.sets import coco
from recipes.perception import data, model, tasks
from recipes.perception.config import LabelNoise, PromptConfig, weights_of
from recipes.perception.model import demonstration, misread, untrained
from recipes.perception.prompt import encode, request_of
from recipes.perception.reward import Gold, figures_of, gold_of, make_metric, parts_of, reward_of
from recipes.protocol import load_config
from stepstack.config import ConfigError
from stepstack.generation.types import Answer
from stepstack.harness.answers import Sample
from stepstack.models.vision.config import PretrainedVl
from stepstack.records import Problem
from stepstack.scoring.vision.answers import LabelledBox, write_tokens
from stepstack.scoring.vision.detection import average_precision
from stepstack.scoring.vision.perception import detected_boxes
from tests.unit.data.photos import instances, write

TASKS = {
    "grounding": "perception-tiny",
    "counting": "perception-tiny-counting",
    "ocr": "perception-tiny-ocr",
    "detection": "perception-tiny-detection",
}
FEW = ("data.train=60", "data.select=6", "data.test=12")


class Photo:
    """A picture of any size."""

    def __init__(self, *size: int):
        self.size = size

    def image(self) -> Image.Image:
        return Image.new("RGB", self.size, "gray")


def load(task: str, *words: str):
    return load_config(TASKS[task], [*FEW, *words])


def rollout(problem: Problem, text: str, finish="stop") -> Answer:
    return Answer(problem=problem, sample=0, text=text, finish=finish)


def perfect(problem: Problem) -> str:
    return demonstration(problem.meta["record"], LabelNoise(), random.Random(0))


def test_gold_is_in_pixels_whatever_the_record_says():
    pixels = Target("cat", (64.0, 48.0, 128.0, 96.0))
    thousand = Target("cat", (100.0, 100.0, 200.0, 200.0))
    for space, target in (("pixels", pixels), ("thousand", thousand), ("unit", Target("cat", (0.1, 0.1, 0.2, 0.2)))):
        record = Record(0, "grounding", (Photo(640, 480),), "cat", (target,), space, (640, 480))
        gold = Gold.read(gold_of(record, (644, 476)).write())
        assert gold.boxes[0][0] == pytest.approx((64, 48, 128, 96))
        assert (gold.size, gold.model_size, gold.boxes[0][1]) == ((640, 480), (644, 476), "cat")


def test_the_model_sees_a_resized_picture_and_answers_in_its_pixels():
    """The field's most frequent bug: an answer in the resized image against a box of the original."""
    model = PretrainedVl(path="x", min_pixels=3136, max_pixels=28 * 28 * 40)
    record = Record(
        0, "grounding", (Photo(640, 480),), "cat", (Target("cat", (64, 48, 128, 96)),), "pixels", (640, 480)
    )
    width, height = model.model_size(record.size)
    assert (width, height) != (640, 480)
    gold = gold_of(record, (width, height))
    box = [round(v) for v in (width / 10, height / 10, width / 5, height / 5)]
    answer = json.dumps([{"bbox_2d": box, "label": "cat"}])
    assert figures_of(answer, gold, "json", "model")[1]["iou"] > 0.9
    assert figures_of(answer, gold, "json", "pixels")[1]["iou"] < 0.3


@pytest.mark.parametrize("task", TASKS)
def test_a_perfect_answer_scores_full_and_nonsense_nothing(task):
    cfg = load(task)
    found = data.problems(cfg, "test")
    full = sum(value for name, value in weights_of(task, cfg.reward).items() if name != "missing")
    for score in reward_of(cfg)([rollout(p, perfect(p)) for p in found]):
        assert score.value == pytest.approx(full)
    cut = reward_of(cfg)([rollout(p, perfect(p), "length") for p in found])
    assert all(score.parts["format"] == 0 for score in cut)
    for score in reward_of(cfg)([rollout(p, "~") for p in found]):
        nothing = -weights_of(task, cfg.reward)["missing"] if task == "detection" else 0.0
        assert score.value == pytest.approx(1.0 if task == "ocr" else nothing)  # any text is well-formed ocr
    judged = make_metric(cfg)([rollout(p, perfect(p)) for p in found])
    assert all(score.value == pytest.approx(1) for score in judged)


def test_a_weight_changes_the_sum_and_an_unknown_one_is_an_error():
    problem = data.problems(load("counting"), "test")[0]
    [plain] = reward_of(load("counting", "reward.weights={exact: 0}"))([rollout(problem, perfect(problem))])
    [more] = reward_of(load("counting", "reward.weights={exact: 2}"))([rollout(problem, perfect(problem))])
    assert more.value == pytest.approx(plain.value + 2)
    with pytest.raises(ConfigError, match=r"reward\.weights: \['iou'\] are no parts of counting"):
        load("counting", "reward.weights={iou: 1}")


def test_matching_forgives_the_order_and_its_absence_does_not():
    cfg = load("detection", "data.objects=[3, 3]")
    for problem in data.problems(cfg, "test")[:6]:
        boxes = [LabelledBox(t.box, t.label) for t in problem.meta["record"].targets]
        turned = write_tokens([*boxes[1:], boxes[0]])
        [matched] = reward_of(cfg)([rollout(problem, turned)])
        [ordered] = reward_of(load("detection", "data.objects=[3, 3]", "reward.matching=false"))(
            [rollout(problem, turned)]
        )
        assert matched.parts["location"] == pytest.approx(1)
        assert ordered.value < matched.value


def test_noisy_demonstrations_err_as_often_as_they_say():
    records = problems(Objects(task="counting", objects=(3, 4), count=(3, 3), train=300, size=(84, 84)), "train")
    rng = random.Random(0)
    said = [demonstration(r, LabelNoise(dropped=0.3), rng).count("<|box_start|>") for r in records]
    assert sum(said) / sum(len(r.targets) for r in records) == pytest.approx(0.7, abs=0.05)
    record = problems(Objects(train=1), "train")[0]
    shaken = {demonstration(record, LabelNoise(jitter=3), rng) for _ in range(50)}
    assert len(shaken) > 30
    for _ in range(200):
        x1, y1, x2, y2 = model._shaken((0, 0, 56, 20), 5, (56, 56), rng)
        assert 0 <= x1 < x2 <= 56
        assert 0 <= y1 < y2 <= 56
    texts = [misread("ABCD", 0.25, rng) for _ in range(500)]
    assert 0.2 < sum(t == "ABCD" for t in texts) / 500 < 0.45
    assert misread("AB C", 0.0, rng) == "AB C"


@pytest.mark.parametrize("task", TASKS)
def test_who_thinks_says_first_what_it_sees(task):
    """Without label noise a thinking demonstration earns the whole reward, and only where thinking is asked for."""
    cfg = load(task, "prompt.thinking=true")
    words = model.tokenizer(thinking=True)
    for problem in data.problems(cfg, "train"):
        said = demonstration(problem.meta["record"], LabelNoise(), random.Random(0), thinking=True)
        gold = problem.gold
        full = {part: float(part != "missing") for part in weights_of(task, cfg.reward)}
        assert parts_of(said, gold, cfg.reward, finished=True, thinking=True) == full
        assert parts_of(said, gold, cfg.reward, finished=True, thinking=False)["format"] < 1 or task == "ocr"
        ids = words(said, add_special_tokens=False)["input_ids"]
        assert words.decode(ids) == said
        assert len(ids) < cfg.rollout.sampling.max_tokens + 48


def test_a_prompt_has_as_many_image_tokens_as_the_model_makes():
    _, processor = untrained(load("grounding").model, seed=0)
    pad = processor.tokenizer.get_vocab()["<|image_pad|>"]
    for cfg in (PromptConfig(style="short"), PromptConfig(style="qwen"), PromptConfig(style="qwen", thinking=True)):
        for record in problems(Words(train=3, size=(84, 56)), "train"):
            prompt = encode(Problem(0, "", "", {"record": record}), request_of(record, cfg), processor, cfg)
            frames, rows, columns = processor.patcher.patches(record.pictures[0]).grid
            assert prompt.ids.count(pad) == frames * rows * columns // 4 == 6
            assert prompt.pictures == record.pictures


def test_the_name_of_a_special_token_in_a_question_is_text():
    _, processor = untrained(load("grounding").model, seed=0)
    record = Record(0, "grounding", (Photo(56, 56),), "<|image_pad|>", (), "pixels", (56, 56))
    cfg = PromptConfig()
    ids = encode(Problem(0, "", "", {"record": record}), request_of(record, cfg), processor, cfg).ids
    assert ids.count(processor.tokenizer.get_vocab()["<|image_pad|>"]) == 4


def test_what_a_tiny_model_writes_is_few_tokens():
    """Numbers, names and what stands between coordinates are one token each."""
    words = model.tokenizer()
    text = write_tokens([LabelledBox((10, 5, 41, 56), "red circle")])
    assert words.decode(words(text).input_ids) == text
    assert len(words(text).input_ids) == 14


def test_average_precision_over_samples_is_that_of_their_boxes():
    cfg = load("detection")
    found = data.problems(cfg, "test")
    rng = random.Random(0)
    texts = [demonstration(p.meta["record"], LabelNoise(jitter=4, dropped=0.3), rng) for p in found]
    questions = [[_sample(p, text)] for p, text in zip(found, texts, strict=True)]
    figures = {m.name: m.measure(questions) for m in tasks.metrics_of(cfg)[:6]}
    pairs = []
    for problem, text in zip(found, texts, strict=True):
        gold = problem.gold
        boxes, _ = detected_boxes(text, gold.frame("pixels"), "tokens")
        pairs.append((gold.annotated, boxes))
    expected = average_precision(pairs)
    assert {name: figures[name].value for name in ("AP", "AP50", "AP75")} == pytest.approx(
        {"AP": expected["ap"], "AP50": expected["ap50"], "AP75": expected["ap75"]}
    )
    assert figures["AP small"] == figures["AP"]  # no object of a tiny scene has more than 32 x 32 pixels
    assert (figures["AP medium"], figures["AP large"]) == (None, None)
    assert 0 < figures["AP"].value < 1
    assert figures["AP"].stderr > 0


OBJECTS = [  # an object in a crowd, one that is small by its area alone, a crowd of another label, a large object
    {"id": 1, "image_id": 10, "category_id": 1, "bbox": [0, 0, 640, 480], "iscrowd": 1, "area": 90000.5},
    {"id": 2, "image_id": 10, "category_id": 1, "bbox": [500, 300, 50, 100], "iscrowd": 0, "area": 800},
    {"id": 3, "image_id": 10, "category_id": 18, "bbox": [10, 10, 60, 60], "iscrowd": 0, "area": 2400},
    {"id": 4, "image_id": 11, "category_id": 18, "bbox": [0, 0, 200, 400], "iscrowd": 1, "area": 80000},
    {"id": 5, "image_id": 11, "category_id": 1, "bbox": [100, 100, 300, 200], "iscrowd": 0, "area": 42000},
]


def test_figures_of_a_prepared_instances_file_are_coco_evals(tmp_path):
    """From the file to the figures, with boxes in and beside crowds, near objects and away from all."""
    source = json.loads(Path(instances(tmp_path)).read_text()) | {"annotations": OBJECTS}
    file = write(tmp_path / "instances.json", source)
    coco.prepare(tmp_path / "out", file, [], IntakeOptions())
    rng, names = random.Random(0), {1: "person", 18: "dog"}
    detections = []
    for one in OBJECTS * 3 + [{**OBJECTS[k % 5], "bbox": [40 * k, 30, 35, 35 + 9 * k]} for k in range(12)]:
        x, y, width, height = (number + rng.choice([0, 4, 9]) for number in one["bbox"])
        detections.append(
            {"image_id": one["image_id"], "category_id": one["category_id"], "bbox": [x, y, width, height], "score": 1}
        )
    rng.shuffle(detections)
    cfg = load("detection", "reward.form=json", "reward.space=pixels")
    questions = []
    for record, image in zip(coco.load(tmp_path / "out", "train"), (10, 11), strict=True):
        problem = Problem(record.index, "", gold_of(record, record.size), {})
        found = [d for d in detections if d["image_id"] == image]
        corners = [(x, y, x + w, y + h) for x, y, w, h in (d["bbox"] for d in found)]
        items = zip(corners, found, strict=True)
        text = json.dumps([{"bbox_2d": box, "label": names[d["category_id"]]} for box, d in items])
        questions.append([_sample(problem, text)])
    figures = [metric.measure(questions).value for metric in tasks.metrics_of(cfg)[:6]]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(file)
        scored = COCOeval(truth, truth.loadRes(detections), "bbox")
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
    assert figures == pytest.approx(scored.stats[:6].tolist(), abs=1e-12, rel=0)
    assert min(figures) > 0


def test_the_gold_keeps_crowds_and_areas_and_reads_rows_without_them():
    targets = (
        Target("cat", (100.0, 100.0, 200.0, 200.0), area=50.5),
        Target("cat", (0.0, 0.0, 1000.0, 1000.0), crowd=True),
        Target("dog", (0.0, 0.0, 500.0, 500.0)),
    )
    record = Record(0, "detection", (Photo(640, 480),), "cat, dog", targets, "thousand", (640, 480))
    gold = gold_of(record, (644, 476))
    assert Gold.read(gold.write()) == gold
    assert gold.annotated == (
        ((64, 48, 128, 96), "cat", 50.5, False),
        ((0, 0, 640, 480), "cat", None, True),
        ((0, 0, 320, 240), "dog", None, False),
    )
    assert gold.boxes == (((64, 48, 128, 96), "cat"), ((0, 0, 320, 240), "dog"))
    written = json.loads(gold.write())["boxes"]
    assert [len(entry) for entry in written] == [4, 4, 2]
    assert Gold.read(json.dumps({**json.loads(gold.write()), "boxes": [written[2]]})).annotated == gold.annotated[2:]


def test_a_crowd_is_neither_rewarded_nor_shown_as_an_object():
    crowd, cat = Target("cat", (0.0, 0.0, 640.0, 480.0), crowd=True), Target("cat", (100.0, 100.0, 200.0, 200.0))
    with_crowd, without = (
        Record(0, "detection", (Photo(640, 480),), "cat", targets, "pixels", (640, 480))
        for targets in ((crowd, cat), (cat,))
    )
    assert with_crowd.objects == without.objects == (cat,)
    noise = LabelNoise()
    assert demonstration(with_crowd, noise, random.Random(0)) == demonstration(without, noise, random.Random(0))
    cfg = load("detection")
    text = write_tokens([LabelledBox((100, 100, 200, 200), "cat"), LabelledBox((400, 400, 440, 440), "cat")])
    [inside] = reward_of(cfg)([rollout(Problem(0, "", gold_of(with_crowd, (640, 480)), {}), text)])
    [beside] = reward_of(cfg)([rollout(Problem(0, "", gold_of(without, (640, 480)), {}), text)])
    assert inside.parts == {"format": 1, "location": 1, "cls": 1, "count_f1": 1, "missing": 0}
    assert beside.parts["count_f1"] == pytest.approx(2 / 3)
    [figures] = make_metric(cfg)([rollout(Problem(0, "", gold_of(with_crowd, (640, 480)), {}), text)])
    assert figures.parts["count_f1"] == 1


def _sample(problem: Problem, text: str) -> Sample:
    return Sample(
        index=problem.index,
        sample=0,
        problem=problem.text,
        gold=problem.gold.write(),
        prompt="",
        text=text,
        ids=None,
        tokens=1,
        finish="stop",
        answer=text,
        score=1.0,
    )


def test_published_configs_ask_in_the_published_words():
    cfg = load_config("perception-grounding-2b")
    assert (cfg.reward.space, cfg.reward.squared, cfg.kl.weight, cfg.rollout.sampling.n) == ("thousand", True, 0.04, 8)
    assert load_config("perception-detection-3b").reward.space == "model"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("task=ocr",), "task is ocr, but the data is for grounding"),
        (("advantage={type: gae}",), "perception has no critic"),
    ],
)
def test_bad_configs(words, said):
    with pytest.raises(ValueError, match=said):
        data.problems(load_config("perception-tiny", [*FEW, *words]), "train")
