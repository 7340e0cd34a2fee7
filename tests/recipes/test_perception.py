"""The perception recipe end to end, in small: every task trains, shows what it saw, resumes and evaluates again."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image
from safetensors.torch import load_file

from data.media.images import Record
from recipes.perception import data as perception_data
from recipes.perception import recipe
from recipes.protocol import load_config
from stepstack.cli import main as cli
from stepstack.core.run import Run
from stepstack.harness import answers as io
from stepstack.report import jsonl
from tests import tools
from tests.cards import check_card
from tests.unit.recipes.perception.test_perception_recipe import TASKS

SMALL = (
    "steps=3",
    "eval_every=0",
    "save.every=2",
    "trackers=[]",
    "evals=[test]",
    "model.steps=12",
    "model.batch=8",
    "model.hidden=48",
    "model.layers=2",
    "model.intermediate=64",
    "model.tower=32",
    "data.train=40",
    "data.select=4",
    "data.test=8",
    "rollout.prompts=4",
    "rollout.sampling.n=4",
    "rollout.sampling.max_tokens=16",
)
CLOCK = ("time/", "cpu_s", "tokens_per_s", "mfu", "memory_gib")


@pytest.fixture(scope="module", autouse=True)
def varied():
    """So small a model earns nothing; the real reward plus a little that differs within groups."""
    made = recipe.reward_of

    def make(cfg):
        reward = made(cfg)
        return lambda rollouts: [
            replace(score, value=score.value + 0.1 * (r.ids[0] % 3))
            for r, score in zip(rollouts, reward(rollouts), strict=True)
        ]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "reward_of", make)
        yield


def train(folder: Path, task: str, *words: str, stop_after: int | None = None) -> Path:
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    loaded = load_config(TASKS[task], (f"dir={folder.parent}", f"name={folder.name}", *SMALL, *words))
    recipe.train(Run(loaded, stop_after=stop_after))
    return folder


def test_rollouts_of_a_worker_process_train_to_the_same_bits(tmp_path):
    """Pictures and their processor reach the worker too; a unit is two groups."""
    words = ("rollout.generator.batch=8", "evals=[]", "save.every=0")
    plain = train(tmp_path / "plain", "grounding", *words)
    shutil.copytree(plain / "base" / "model", tmp_path / "streamed" / "base" / "model")
    streamed = train(tmp_path / "streamed", "grounding", *words, "stream={workers: 1}")
    weights = [load_file(run / "model" / "model.safetensors") for run in (plain, streamed)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert [row["reward"] for row in rows(plain)[1:]] == [row["reward"] for row in rows(streamed)[1:]]


def rows(folder: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if not k.startswith(CLOCK)} for row in jsonl.read(folder / "metrics.jsonl")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Path]:
    return {task: train(tmp_path_factory.mktemp(task) / "q", task) for task in TASKS}


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_every_task_trains(trained, task):
    assert check_card(trained[task]).data.pipeline_tag == "image-text-to-text"
    first, *steps = rows(trained[task])
    assert first["step"] == 0
    assert len(steps) == 3
    for row in steps:
        assert all(math.isfinite(value) for value in row.values())
        assert row["actor/mismatch_max"] < 1e-4
        assert row["actor/skipped"] == 0
        assert {f"reward/{name}" for name in recipe.weights_of(task, load_config(TASKS[task]).reward)} <= row.keys()
    base, made = (load_file(trained[task] / place / "model.safetensors") for place in ("base/model", "model"))
    assert any((base[name] != made[name]).any() for name in made)
    assert {p.name for p in (trained[task] / "model").iterdir()} >= {"preprocessor_config.json", "tokenizer.json"}


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_the_report_shows_pictures_before_and_after(trained, task):
    page = (trained[task] / "report.html").read_text()
    assert "Held-out pictures" in page
    assert page.count("data:image/png;base64,") == 2 * 8
    assert "Parts of the reward" in tools.page_data(trained[task] / "report.html")["charts"]
    assert tools.unexplained(trained[task]) == []
    with Image.open(trained[task] / "pictures.png") as sheet:
        assert sheet.width > 8 * 160
        assert sheet.height > 2 * 80
    result = json.loads(next((trained[task] / "evals" / "after").glob("*/result.json")).read_text())
    assert (
        result["metrics"][0]["name"]
        == {"grounding": "acc@.75", "counting": "exact", "ocr": "edit distance", "detection": "AP"}[task]
    )


@pytest.mark.slow
def test_a_stopped_run_goes_on_bit_for_bit(trained, tmp_path):
    folder = tmp_path / "q"
    with pytest.raises(SystemExit):
        train(folder, "grounding", stop_after=1)
    train(folder, "grounding")
    assert rows(folder) == rows(trained["grounding"])
    mine, whole = (load_file(place / "model" / "model.safetensors") for place in (folder, trained["grounding"]))
    assert all((mine[name] == whole[name]).all() for name in whole)


@pytest.mark.slow
def test_eval_of_the_exported_model_says_the_same(trained):
    run = trained["counting"]
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    words = [f"dir={run.parent}", f"name={run.name}", *SMALL]
    assert cli.main(["eval", TASKS["counting"], *words]) == 0
    [again] = run.glob("evals/model-*/*/samples.jsonl")
    [after] = run.glob("evals/after/*/samples.jsonl")
    assert [s.text for s in io.read(again)] == [s.text for s in io.read(after)]
    assert again.parent.name == after.parent.name


@pytest.mark.slow
def test_a_frozen_tower_stays_and_adapters_learn(tmp_path, trained):
    """LoRA on the language model of a pretrained model, its tower frozen, a reference for the KL term."""
    base = trained["grounding"] / "base" / "model"
    words = (
        f"model={{type: pretrained, path: {base}, freeze: tower, min_pixels: 784}}",
        "kl.weight=0.04",
        "actor.lora={r: 4, targets: '.*language_model.*(q|v)_proj'}",
    )
    small = tuple(word for word in SMALL if not word.startswith("model."))
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    loaded = load_config(TASKS["grounding"], (f"dir={tmp_path}", "name=q", *small, *words))
    recipe.train(Run(loaded))
    assert all("actor/ref_kl" in row for row in rows(tmp_path / "q")[1:])
    before, after = (load_file(place / "model.safetensors") for place in (base, tmp_path / "q" / "model"))
    changed = {name for name in before if (before[name] != after[name]).any()}
    assert changed
    assert all(name.endswith(("q_proj.weight", "v_proj.weight")) and "visual" not in name for name in changed)


def sources(folder: Path, split: str, task: str) -> tuple[str, list[Record]]:
    """Drawn scenes as a file of the published form, with its pictures: (file, records)."""
    cfg = load_config(TASKS[task], SMALL)
    records = list(perception_data.records(cfg.data, split))
    rows = []
    for record in records:
        path = folder / f"{task}-{split}-{record.index}.png"
        record.pictures[0].image().save(path)
        row = {"image": path.name, "problem": record.question, "solution": record.targets and record.targets[0].box}
        row["conversations"] = [{"value": "OCR this image."}, {"value": record.text}]
        rows.append(row)
    file = folder / f"{task}-{split}.json"
    file.write_text(json.dumps(rows))
    return str(file), records


@pytest.mark.slow
@pytest.mark.parametrize(("task", "kind"), [("grounding", "refcoco"), ("ocr", "page_ocr")])
def test_published_splits_are_tasks_and_score_as_the_scenes_they_came_from(trained, tmp_path, task, kind):
    """`make data`, then `stepstack eval --tasks refcoco_testA`: the same model, pictures and figures as drawn."""
    (train_file, _), (test_file, _) = (sources(tmp_path, split, task) for split in ("train", "test"))
    run, out = trained[task], tmp_path / "prepared"
    data_words = [
        f"data={{type: prepared, set: {kind}, folder: {out}, select: testA, test: testA}}",
        f"data.source=[{train_file}]",
        f"data.evals=[testA={test_file}]",
        "data.options.space=pixels",
    ]
    small = [word for word in SMALL if not word.startswith(("data.", "evals"))]
    words = [TASKS[task], f"dir={run.parent}", f"name={run.name}", *small, *data_words]
    assert cli.main(["data", *words]) == 0
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    assert cli.main(["eval", *words, "--tasks", f"{kind}_testA"]) == 0
    [mine] = run.glob(f"evals/model-*/{kind}_testA*/result.json")
    [drawn] = run.glob("evals/after/*/result.json")
    mine, drawn = (json.loads(place.read_text()) for place in (mine, drawn))
    figures = [{m["name"]: (m["value"], m["stderr"]) for m in result["metrics"]} for result in (mine, drawn)]
    assert figures[0] == figures[1]
    assert mine["task"] == f"{kind}_testA"
