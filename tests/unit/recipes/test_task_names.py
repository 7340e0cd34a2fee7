"""The names of a recipe's own tasks, which a config says without torch, are those of the tasks that it has."""

from __future__ import annotations

import json

import pytest

from recipes import protocol
from recipes.protocol import load_config
from stepstack.config import ConfigError

PREPARED = "data={type: prepared, set: refcoco, folder: FOLDER, evals: [testA=a.json]}"


@pytest.mark.parametrize(
    "name",
    [
        "orz-tiny",
        "orz-7b",
        "perception-tiny",
        "perception-tiny-ocr",
        "stepaudio-3b",
        "stepaudio-tiny",
        "steplaw-tiny",
        "stepvideo-tiny",
    ],
)
def test_names_are_those_of_the_tasks(name):
    cfg = load_config(name)
    assert [task.name for task in protocol.load(cfg.recipe).tasks(cfg)] == list(cfg.task_names)


def test_prepared_clips_have_no_tasks():
    assert load_config("stepvideo-ti2v-30b").task_names == ()


@pytest.mark.parametrize("evals", [[], ["val", "testB"]])
def test_a_prepared_folder_has_a_task_for_each_eval(tmp_path, evals):
    if evals:
        (tmp_path / "manifest.json").write_text(json.dumps({"schema": 1, "evals": {name: {} for name in evals}}))
    words = [PREPARED.replace("FOLDER", str(tmp_path)), "evals=[refcoco_testA]"]
    names = load_config("perception-grounding-2b", words).task_names
    assert names == ("train", "select", "test", *(f"refcoco_{name}" for name in sorted([*evals, "testA"])))


def test_an_eval_that_no_folder_has_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"evals = 'refcoco_testB': no such task\. Did you mean refcoco_testA\?"):
        load_config("perception-grounding-2b", [PREPARED.replace("FOLDER", str(tmp_path)), "evals=[refcoco_testB]"])
