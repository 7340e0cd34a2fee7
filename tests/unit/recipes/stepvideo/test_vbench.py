"""VBench-I2V: its published totals follow from its published dimensions; what it is given, and what is read back."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from recipes.stepvideo.evaluation import vbench
from stepstack.cli import main as cli
from stepstack.config import ROOT, ConfigError
from stepstack.report import jsonl

SHORT = {
    "camera_motion": "camera",
    "i2v_subject": "i2v_subject",
    "i2v_background": "i2v_background",
    "subject_consistency": "subject",
    "background_consistency": "background",
    "motion_smoothness": "smoothness",
    "dynamic_degree": "dynamic",
    "aesthetic_quality": "aesthetic",
    "imaging_quality": "imaging",
}
PUBLISHED = {
    row["key"]: row["values"] for row in json.loads((ROOT / "evals/reported/stepvideo.json").read_text())["rows"]
}


def of(model: str) -> dict[str, float]:
    return {name: PUBLISHED[model][f"vbench_{short}"] / 100 for name, short in SHORT.items()}


@pytest.mark.parametrize("model", ["Step-Video-TI2V, motion 10", "Step-Video-TI2V, motion 5", "OSTopA"])
def test_published_totals_follow_from_published_dimensions(model):
    made = vbench.totals(of(model))
    for name, value in made.items():
        assert 100 * value == pytest.approx(PUBLISHED[model][f"vbench_{name}"], abs=0.011), name


def test_of_one_model_the_published_i2v_score_does_not():
    """Published 93.25, its three dimensions give 92.88. Quality agrees; the total is the mean of the two printed."""
    made, printed = vbench.totals(of("OSTopB")), PUBLISHED["OSTopB"]
    assert 100 * made["i2v"] == pytest.approx(92.88, abs=0.005)
    assert 100 * made["quality"] == pytest.approx(printed["vbench_quality"], abs=0.011)
    assert (printed["vbench_i2v"] + printed["vbench_quality"]) / 2 == pytest.approx(printed["vbench_total"], abs=0.006)


def test_perfect_scores_are_perfect_and_a_missing_one_is_named():
    assert vbench.totals({name: d.high for name, d in vbench.DIMENSIONS.items()}) == {
        "total": 1.0,
        "i2v": 1.0,
        "quality": 1.0,
    }
    scores = of("OSTopA")
    del scores["dynamic_degree"]
    with pytest.raises(ConfigError, match="no score of dynamic_degree"):
        vbench.totals(scores)


# What VBench does with its arguments, in the form of its own package: the real one needs a GPU and downloads.
STANDIN = """
import json, os
class VBenchI2V:
    def __init__(self, device, full_info_dir, output_path):
        self.info, self.out = full_info_dir, output_path
        os.makedirs(output_path, exist_ok=True)
        assert device == "cpu"
    def evaluate(self, videos_path, name, dimension_list, resolution):
        if os.path.exists("broken"):
            raise SystemExit(3)
        rows = [r for r in json.load(open(self.info)) if set(dimension_list) & set(r["dimension"])]
        seen = []
        for row in rows:
            assert os.path.exists(f"vbench2_beta_i2v/data/crop/{resolution}/" + row["image_name"])
            for i in range(5):
                content = open(os.path.join(videos_path, row["prompt_en"] + f"-{i}.mp4")).read()
                assert content == row["prompt_en"] + str(i), content
                seen.append({"video_path": row["prompt_en"], "video_results": 0.5})
        (dimension,) = dimension_list
        with open("asked", "a") as file:
            file.write(dimension + " ")
        json.dump({dimension: [0.9, seen]}, open(os.path.join(self.out, name + "_eval_results.json"), "w"))
"""


@pytest.fixture
def place(tmp_path) -> tuple[Path, Path]:
    """(evaluation, folder of benchmark data with a clone)."""
    clone, evaluation = tmp_path / "data" / "VBench", tmp_path / "evaluation"
    package = clone / "vbench2_beta_i2v"
    (package / "data/crop/16-9").mkdir(parents=True)
    (package / "__init__.py").write_text(STANDIN)
    info = [
        {"prompt_en": "a cat, still", "image_name": "cat.jpg", "dimension": list(vbench.DIMENSIONS)},
        {"prompt_en": "a dog", "image_name": "dog.jpg", "dimension": ["camera_motion"]},
        {"prompt_en": "not asked", "image_name": "none.jpg", "dimension": ["temporal_flickering"]},
    ]
    (package / "vbench2_i2v_full_info.json").write_text(json.dumps(info))
    rows = []
    for index, row in enumerate(info[:2]):
        (package / "data/crop/16-9" / row["image_name"]).write_bytes(b"x")
        for n in range(5):
            clip = tmp_path / f"{index}{n}.mp4"
            clip.write_text(f"{row['prompt_en']}{n}")
            rows.append(sample(index, n, row["prompt_en"], clip))
    jsonl.write_rows_atomic(evaluation / "samples.jsonl", rows)
    jsonl.write_json_atomic(evaluation / "result.json", {})
    return evaluation, tmp_path / "data"


def sample(index: int, number: int, prompt: str, clip: Path) -> dict:
    return {
        "index": index,
        "sample": number,
        "problem": prompt,
        "gold": prompt,
        "prompt": prompt,
        "text": "",
        "media": [str(clip)],
        "ids": None,
        "tokens": 0,
        "finish": "stop",
        "answer": None,
        "score": 1.0,
    }


def test_it_runs_in_another_python_goes_on_and_is_read_back(place, capsys):
    evaluation, data = place
    clone = data / "VBench"
    line = ["vbench", str(evaluation), "--data", str(data), "--python", sys.executable, "--device", "cpu"]
    (clone / "broken").touch()
    assert cli.main(line) == 2
    assert "VBench failed on camera_motion (exit status 3)" in capsys.readouterr().err
    (clone / "broken").unlink()
    assert cli.main(line) == 0
    assert (clone / "asked").read_text().split() == list(vbench.DIMENSIONS)
    assert "total" in capsys.readouterr().out
    found = json.loads((evaluation / "vbench.json").read_text())
    assert found["scores"] == dict.fromkeys(vbench.DIMENSIONS, 0.9)
    assert found["totals"] == vbench.totals(found["scores"])
    (evaluation / "vbench/results/camera_motion_eval_results.json").unlink()
    assert cli.main(["vbench", str(evaluation)]) == 0  # only reads
    assert "not scored yet: camera_motion" in capsys.readouterr().out
    assert json.loads((evaluation / "vbench.json").read_text())["totals"] == {}
    assert cli.main(line) == 0
    assert (clone / "asked").read_text().split() == [*vbench.DIMENSIONS, "camera_motion"]


def test_what_is_missing_is_named_before_anything_runs(place, tmp_path, capsys):
    evaluation, data = place
    line = ["vbench", str(evaluation), "--data", str(data), "--python", sys.executable, "--device", "cpu"]
    rows = jsonl.read(evaluation / "samples.jsonl")
    for change, said in (
        (
            lambda: jsonl.write_rows_atomic(evaluation / "samples.jsonl", rows[:-2]),
            "lacks 2 of 10 videos, as 'a dog-3.mp4'",
        ),
        (lambda: Path(rows[0]["media"][0]).unlink(), "1 of 8 clips failed or are gone"),
        (lambda: (evaluation / "result.json").unlink(), "is no finished evaluation"),
        (lambda: (data / "VBench" / vbench.INFO).unlink(), "clone https://github.com/Vchitect/VBench there"),
    ):
        change()
        assert cli.main(line) == 2
        assert said in capsys.readouterr().err
    assert not (data / "VBench" / "asked").exists()
    with pytest.raises(ConfigError, match="has scored nothing there yet"):
        vbench.read(evaluation)
    jsonl.write_json_atomic(evaluation / "vbench/results/x_eval_results.json", {"camera_motion": [float("nan"), []]})
    with pytest.raises(ConfigError, match="camera_motion is not finite"):
        vbench.read(evaluation)
