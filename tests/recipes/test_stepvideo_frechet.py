"""The distance of drawn clips: its classifier is always the same, and clips that are wrong as a set are far."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data.drawn import moving
from data.drawn.moving import Clip, Moving
from recipes.protocol import load_config
from recipes.stepvideo import tasks
from recipes.stepvideo.evaluation import frechet
from stepstack.harness.answers import Sample

DATA = Moving(train=300, test=24, select=2)
STEPS = 90  # of 350: enough to see colours, and that something moves


def questions(clips: list[Clip]) -> list[list[Sample]]:
    """The answer of each is the text of a clip itself."""
    rest = {
        "sample": 0,
        "prompt": "",
        "text": "",
        "ids": None,
        "tokens": 0,
        "finish": "stop",
        "answer": None,
        "score": 1.0,
    }
    texts = [(clip.prompt, clip.write()) for clip in clips]
    return [[Sample(index=i, problem=name, gold=text, media=[text], **rest)] for i, (name, text) in enumerate(texts)]


def measured(read) -> tuple[float, float]:
    made, true = frechet.figures(DATA, read, STEPS)
    asked = questions(moving.clips(DATA, "test"))
    assert not made.higher_is_better
    return made.measure(asked).value, true.measure(asked).value


def drawn(text: str) -> np.ndarray:
    return moving.render(Clip.read(text), DATA)


def test_clips_that_are_wrong_as_a_set_are_far():
    found, true = measured(drawn)
    assert found == true > 0
    still, chance = measured(lambda text: np.repeat(drawn(text)[:1], DATA.frames, 0))
    assert chance == true
    assert still > 1.5 * true
    red, _ = measured(lambda text: drawn(text.replace(Clip.read(text).colour, "red")))
    assert red > 4 * true


def test_the_classifier_depends_on_the_data_alone():
    state = frechet.classifier(DATA, 3).state_dict()
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    again = frechet.classifier.__wrapped__(DATA, 3).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(state[name], value) for name, value in again.items())


def test_a_clip_that_stands_still_has_no_direction():
    clips = moving.clips(DATA, "test")
    labels = frechet.classifier(DATA, 3).labels(clips)
    assert [row[0] == -100 for row in labels.tolist()] == [clip.score == 0 for clip in clips]
    assert labels[:, 1:].min() == 0


def test_it_is_a_task_that_is_asked_for_by_name():
    cfg = load_config("stepvideo-tiny")
    assert "frechet" not in cfg.evals
    task = {task.name: task for task in tasks.tasks(cfg)}["frechet"]
    assert [m.name for m in task.metrics(task.budget)] == ["Fréchet distance", "Fréchet distance of true clips"]
    assert task.rows(tasks.ROOT) == {task.name: task for task in tasks.tasks(cfg)}["test"].rows(tasks.ROOT)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_clips_have_none(count):
    [made, _] = frechet.figures(DATA, drawn, STEPS)
    assert made.measure(questions(moving.clips(DATA, "test")[:count])) is None
