"""stepvideo with DSV on: what resumes, what is logged and shown, and that an exported model samples as in its run."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.utils import DistributedType

from data.drawn import moving
from recipes.protocol import load_config
from recipes.stepvideo.generation.engine import ClipEngine, open_pipeline
from recipes.stepvideo.generation.pipeline import ClipRequest, Pipeline
from recipes.stepvideo.model import DIT, digest
from recipes.stepvideo.recipe import train
from recipes.stepvideo.tasks import prompt_of, read
from stepstack.config import ROOT, ConfigError
from stepstack.core.run import Run
from stepstack.harness import answers
from stepstack.harness.training.evaluated import results
from stepstack.models.video.dit import VideoDiT
from stepstack.report import tables
from tests import tools
from tests.system.processes import checkpoint, differences, ok, role_state, rows, train_ranks

SHORT = (
    "steps=4",
    "vae.steps=3",
    "vae.gate=0.0",
    "eval_every=0",
    "data.train=40",
    "data.test=6",
    "data.select=8",
    "sampler.steps=2",
    "batch=4",
    "micro=4",
    "trackers=[]",
    "model.layers=2",
    "evals=[test]",
    "dit.optim.schedule.warmup=0",
)
DSV = ("dsv.warmup=2", "dsv.switch=1e6", "dsv.every_sparse=1", "dsv.rank=8", "dsv.sampling=2")
FOUR = (*DSV, "model.heads=4")  # 3 do not divide by two processes
LINK = "{bytes: [0, 1e6], seconds: [1e-6, 2e-6]}"
PLAN = (
    "context_plan={every: 100, options: {shapes: [[2, 1]]}, cluster: {ranks: 2, ranks_per_node: 2, memory: 1e9, "
    f"intra: {LINK}, inter: {LINK}, "
    "compute: {lengths: [16, 1024], sparsities: [0, 1], seconds: [[2e-6, 1e-6], [2e-3, 1e-4]]}}}"
)  # of processes that share videos
CPU = torch.device("cpu")


def made(folder: Path, name: str, *words: str, of: Run | None = None, stop_after: int | None = None) -> Run:
    """A run in ``folder``, trained; with the VAE and the latents of another."""
    base = "stepvideo-tiny-dsv" if "dsv.warmup=2" in words else "stepvideo-tiny"
    loaded = load_config(base, [*SHORT, f"dir={folder}", f"name={name}", *words])
    for part in ("vae", "latents") if of else ():
        if not (folder / name / part).exists():
            shutil.copytree(of.dir / part, folder / name / part)
    run = Run(loaded, stop_after=stop_after)
    with contextlib.suppress(SystemExit) if stop_after else contextlib.nullcontext():
        train(run)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return made(tmp_path_factory.mktemp("runs"), "dsv", *DSV)


@pytest.fixture(scope="module")
def dense(run) -> Run:
    return made(run.dir.parent, "dense", "evals=[]", of=run)


def test_a_run_stopped_in_either_stage_is_the_run_that_was_not(run):
    for stop in (1, 3, None):
        again = made(run.dir.parent, "again", *DSV, of=run, stop_after=stop)
    assert again.resumed_from == 3
    assert rows(again.dir) == rows(run.dir)
    assert differences(checkpoint(again.dir, 4), checkpoint(run.dir, 4)) == []
    one, two = (sorted(f.name for f in (r.dir / "clips").iterdir()) for r in (again, run))
    assert one == two  # files are named by their content


def test_stage_1_is_the_dense_run_and_stage_2_is_sparse(run, dense):
    sparse, plain = rows(run.dir), rows(dense.dir)
    assert [row.get("dsv/stage") for row in sparse] == [None, 1, 2, 2, 2]
    for step in (1, 2, 3):  # the third step's weights are those that two dense steps made, its attention is sparse
        assert sparse[step]["dit/updates"] == plain[step]["dit/updates"] == step
    assert [sparse[step]["loss"] == plain[step]["loss"] for step in (1, 2, 3)] == [True, True, False]
    last = sparse[-1]
    assert last["dsv/sparse"] == 1
    for block in ("00", "01"):
        assert last[f"dsv/sparsity/{block}"] > 0
        assert last[f"dsv/density/{block}"] < 1
        assert 0 < last[f"dsv/recall/{block}"] <= 1


def test_an_exported_model_samples_as_in_its_run(run):
    engine = ClipEngine(run.config, open_pipeline(run.config, run.dir / "model", CPU))
    assert engine.facts["attention"] == "DSV"
    asked = moving.clips(run.config.data, "test")
    [(place, result)] = results(run.dir / "evals" / "after").values()
    assert result["plan"]["engine"] == engine.facts
    shown = [read(ROOT / sample.media[0]) for sample in answers.read(place / "samples.jsonl")]
    assert np.array_equal(
        engine.clips([prompt_of(clip, engine.cfg.data) for clip in asked], [0] * len(asked)), np.stack(shown)
    )


def latents(pipeline: Pipeline) -> torch.Tensor:
    image = np.full((32, 32, 3), 100, np.uint8)
    *_, last = pipeline.steps([ClipRequest("a red circle moves right", image, 5.0, 0)])
    return last


def test_the_config_says_whether_an_exported_model_is_sparse(run):
    folder, plain = run.dir / "model", dataclasses.replace(run.config, dsv=None)
    sparse, dense = (open_pipeline(cfg, folder, CPU) for cfg in (run.config, plain))
    kept = [block.attn1.processor.sparsity_H for block in sparse.dit.blocks]
    own = [
        block.attn1.processor.sparsity_H for block in run.accelerator.unwrap_model(run.trainables["dit"].module).blocks
    ]
    assert all(torch.equal(a, b) for a, b in zip(kept, own, strict=True))
    assert not any("predictor" in name for name in VideoDiT.from_pretrained(folder / DIT).state_dict())
    assert not torch.equal(latents(sparse), latents(dense))


def test_predictors_are_exported_as_they_were_trained(run):
    dit = open_pipeline(run.config, run.dir / "model", CPU).dit.state_dict()
    own = run.accelerator.unwrap_model(run.trainables["dit"].module).state_dict()
    names = [name for name in own if ".predictor." in name]
    assert len(names) == 4
    assert all(torch.equal(dit[name], own[name]) for name in names)


def test_figures_curves_and_heat_maps_are_kept(run, tmp_path):
    facts = json.loads((run.dir / "dsv.json").read_text())
    assert facts["steps"] == {"all": 4, "stage 2": 2}
    assert facts["blocks"][1]["sparsity"] == pytest.approx(
        np.mean([row["dsv/sparsity/01"] for row in rows(run.dir) if "dsv/stage" in row])
    )
    assert np.shape(facts["maps"]["recall"]) == (2, 3)
    page = (run.dir / "report.html").read_text()
    for words in ("DSV by block: 2 of 4 steps in stage 2", "DSV at the end, by head", 'alt="recall"'):
        assert words in page
    by_block = tools.page_data(run.dir / "report.html")["charts"]["Sparse attention by block"]["lines"]
    assert "dsv/recall/01" in {line["label"] for line in by_block}
    (tmp_path / "evals" / "results").mkdir(parents=True)
    assert json.loads(tables.record(run.dir, tmp_path).read_text())["dsv"] == facts


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("dsv.warmup=4", r"dsv\.warmup=4 is not less than steps=4"),
        ("dsv.cube=[5,4,4]", r"dsv\.cube=\(5, 4, 4\) holds a whole clip of \(5, 4, 4\) tokens"),
        ("dsv.rank=12", "multiple of 8"),
        ("dsv.dispatch={type: measured}", r"key 'dsv\.dispatch\.file' is missing"),
        ("dsv.cubes=[1,2,2]", r"unknown key 'dsv\.cubes'"),
        (PLAN, "context_plan is given: .* give it with dsv and a context over 1 .here 1., else null"),
    ],
)
def test_settings_that_cannot_work_are_refused(change, said):
    with pytest.raises(ConfigError, match=said):
        load_config("stepvideo-tiny-dsv", [*SHORT, *DSV, change])


def test_a_plan_must_be_of_the_context():
    words = [*SHORT, *FOUR, "launch.file=cpu-ddp", "launch.processes_per_node=4"]
    with pytest.raises(ConfigError, match="context_plan is missing: it says how processes that share a video share"):
        load_config("stepvideo-tiny-dsv", [*words, "context=2"])
    with pytest.raises(ConfigError, match=r"context_plan\.cluster\.ranks=2 must be context=4"):
        load_config("stepvideo-tiny-dsv", [*words, "context=4", PLAN])
    with pytest.raises(ConfigError, match="context_plan is given"):
        load_config("stepvideo-tiny-dsv", [*words, "context=2", PLAN, "dsv=null"])


def test_a_run_that_dsv_cannot_join_computes_nothing(tmp_path, monkeypatch):
    words = [*SHORT, *DSV, f"dir={tmp_path}"]
    gone = Run(
        load_config("stepvideo-tiny-dsv", [*words, "name=gone", "dsv.dispatch={type: measured, file: gone.json}"])
    )
    with pytest.raises(ConfigError, match=r"no speed profile at gone\.json"):
        train(gone)
    sharded = Run(load_config("stepvideo-tiny-dsv", [*words, "name=sharded"]))
    monkeypatch.setattr(sharded.accelerator.state, "distributed_type", DistributedType.FSDP)
    with pytest.raises(ConfigError, match="never run on a model that FSDP spreads"):
        train(sharded)
    assert not list(tmp_path.glob("*/vae"))


def test_a_folder_of_another_training_is_refused(run, dense, tmp_path):
    with pytest.raises(ConfigError, match="was trained with dsv=None, the config has"):
        open_pipeline(run.config, dense.dir / "model", CPU)
    other = dataclasses.replace(run.config, dsv=dataclasses.replace(run.config.dsv, cube=(5, 1, 1)))
    with pytest.raises(ConfigError, match="was trained with dsv="):
        open_pipeline(other, run.dir / "model", CPU)
    shutil.copytree(dense.dir / "model", tmp_path / "model")
    facts = json.loads((run.dir / "model" / "pipeline.json").read_text())
    facts["dit_sha256"] = digest(dense.dir / "model" / DIT)
    (tmp_path / "model" / "pipeline.json").write_text(json.dumps(facts))
    with pytest.raises(ConfigError, match=r"holds no blocks\.0\.attn1\.processor\.predictor\.query"):
        open_pipeline(run.config, tmp_path / "model", CPU)


def test_two_processes_train_as_one(run):
    """DistributedDataParallel over gloo, half of each batch a process."""
    two = run.dir.parent / "two"
    for part in ("vae", "latents"):
        shutil.copytree(run.dir / part, two / part)
    for ended in train_ranks(two, 2, *SHORT, *DSV, "evals=[]", report=True, config="stepvideo-tiny-dsv"):
        ok(ended)
    for mine, other in zip(rows(run.dir)[1:], rows(two)[1:], strict=True):
        for name in ("loss", "dsv/stage", "dsv/loss", "dsv/sparsity", "dsv/sparse"):
            assert other[name] == pytest.approx(mine[name], rel=1e-3)


# -- processes that share videos -------------------------------------------------------------------------------------


def shared(folder: Path, name: str, of: Run, *words: str) -> Path:
    """A run in two processes that share each video; with the VAE and the latents of another."""
    for part in ("vae", "latents"):
        if not (folder / name / part).exists():
            shutil.copytree(of.dir / part, folder / name / part)
    words = (*SHORT, *FOUR, "context=2", PLAN, *words)
    for ended in train_ranks(folder / name, 2, *words, report=True, config="stepvideo-tiny-dsv"):
        ok(ended)
    return folder / name


@pytest.fixture(scope="module")
def two(run) -> Path:
    return shared(run.dir.parent, "shared", run)


def test_two_processes_that_share_videos_train_as_one(run, two):
    one = made(run.dir.parent, "four", *FOUR, "evals=[]", of=run)
    first, *later = zip(rows(one.dir)[1:], rows(two)[1:], strict=True)
    for name, value in first[0].items():  # the weights are the same still
        assert first[1][name] == pytest.approx(value, rel=1e-5, abs=1e-6), name
    for mine, other in later:
        for name in ("loss", "dsv/stage", "dsv/loss", "dsv/sparsity", "dsv/density", "dsv/mass", "dsv/sparse"):
            assert other[name] == pytest.approx(mine[name], rel=1e-3)


def test_a_shared_run_stopped_in_stage_2_is_the_run_that_was_not(run, two):
    for stop in (("--stop-after", "3"), ()):
        again = shared(run.dir.parent, "shared-again", run, *stop)
    assert rows(again) == rows(two)
    assert differences(checkpoint(again, 4), checkpoint(two, 4)) == []


def test_a_shared_run_goes_on_in_one_process(run, two):
    cut = shared(run.dir.parent, "shared-cut", run, "--stop-after", "3")
    alone = made(run.dir.parent, cut.name, *FOUR)
    assert alone.resumed_from == 3
    for name in ("loss", "dsv/sparsity", "dsv/recall", "dsv/sparse"):
        assert rows(cut)[-1][name] == pytest.approx(rows(two)[-1][name], rel=1e-3)


def test_a_shared_run_exports_a_model_that_samples_as_in_it(run, two):
    cfg = load_config("stepvideo-tiny-dsv", [*SHORT, *FOUR, f"dir={two.parent}", f"name={two.name}"])
    pipeline = open_pipeline(cfg, two / "model", CPU)
    own = role_state(two / "checkpoints" / "step-00000004" / "dit")["weights"]
    names = [name for name in own if ".predictor." in name]
    assert len(names) == 4
    assert all(torch.equal(pipeline.dit.state_dict()[name], own[name]) for name in names)
    asked = moving.clips(cfg.data, "test")
    [(place, _)] = results(two / "evals" / "after").values()
    shown = [read(ROOT / sample.media[0]) for sample in answers.read(place / "samples.jsonl")]
    clips = ClipEngine(cfg, pipeline).clips([prompt_of(clip, cfg.data) for clip in asked], [0] * len(asked))
    assert np.abs(clips.astype(int) - np.stack(shown)).max() <= 1
