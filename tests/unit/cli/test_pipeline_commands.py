"""`stepstack plan pipeline` and `stepstack sim pipeline` by their words."""

from __future__ import annotations

import json
import re

import pytest

from stepstack import config
from stepstack.cli.main import main
from stepstack.config import CONFIGS, ROOT
from stepstack.planning.pipeline import export
from stepstack.planning.pipeline.profile import LayerProfile, PipelineProfile
from stepstack.simulation.pipeline import published, study

PLANS = CONFIGS / "plans"
VLM, LM = str(PLANS / "pipeline-37b.yaml"), str(PLANS / "pipeline-lm-32b.yaml")
FEW = ["batches.microbatches=4", "options.priorities.evaluations=4"]
# Widths of layers and of their MLPs in the published models.
VIT_5B, LLAMA_8B, QWEN_32B, DIT_30B = (1792, 15360), (4096, 14336), (5120, 27648), (6144, 24576)


@pytest.fixture(autouse=True)
def _root(monkeypatch):
    monkeypatch.chdir(ROOT)  # paths of profiles are those of the current folder


def test_a_plan_stands_beside_every_baseline(capsys):
    assert main(["plan", "pipeline", VLM, *FEW]) == 0
    text = capsys.readouterr().out
    names = ["planned", "1F1B", "interleaved 1F1B, 4 stages", "GPipe", "ZB-H1", "ZB-V", "Optimus", "nnScaler"]
    assert [name for name in names if name not in text] == []
    for column in ("makespan", "bubble", "peak memory", "over the bound"):
        assert column in text


def test_json_has_the_plan_and_nothing_else_on_stdout(tmp_path, capsys):
    trace, picture = tmp_path / "a.json", tmp_path / "a.html"
    assert main(["plan", "pipeline", VLM, *FEW, "--json", "--trace", str(trace), "--picture", str(picture)]) == 0
    captured = capsys.readouterr()
    [batch] = json.loads(captured.out)["batches"]
    spans = [event for event in json.loads(trace.read_text())["traceEvents"] if event["ph"] == "X"]
    assert len(spans) == sum(map(len, batch["order"]))
    assert batch["digest"] in picture.read_text()
    assert captured.err.count("->") == 2


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_pictures(tmp_path, suffix, capsys):
    file = tmp_path / f"a{suffix}"
    assert main(["plan", "pipeline", LM, *FEW, "--picture", str(file)]) == 0
    assert file.read_bytes()[:5] in (b"<?xml", b"\x89PNG\r")


def test_exports_of_one_chain(tmp_path, capsys):
    file = tmp_path / "a.csv"
    assert main(["plan", "pipeline", LM, *FEW, "--csv", str(file)]) == 0
    plan = export.read_csv(file)
    assert (plan.graph.ranks, len(plan.graph.chunks), plan.graph.microbatches) == (4, 8, 4)
    capsys.readouterr()
    assert main(["plan", "pipeline", LM, *FEW, "--layout"]) == 0
    assert capsys.readouterr().out == "Et*8|t*8|t*8|t*8|t*8|t*8|t*8|t*8L\n"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([VLM, "--csv", "a.csv"], r"pipeline-37b\.yaml: one chain: the plan has modules vision, text"),
        ([VLM, "--layout"], "one chain: "),
        ([LM, "batches.items.text={low: 2, high: 2, size: 8}", "options.parts={text: 1}", "--layout"], "whole micro"),
        ([LM, "batches={type: list, batches: [[{text: [8]}, {text: [9]}]]}", "--layout"], "equal sizes: "),
        ([LM, "--csv", "a.txt"], r"--csv a\.txt: must end in \.csv"),
        ([LM, "--trace", "a.html"], r"--trace a\.html: must end in \.json"),
        ([LM, "--picture", "a.gif"], r"--picture a\.gif: must end in \.svg or \.png or \.html"),
        ([LM, "--batch", "3"], r"--batch 3: .*has batches 0 to 0"),
        ([LM, "options.segments={text: 17}"], "64 layers for 68 chunks"),
        ([LM, "options.cap=1000"], "rank 0 needs .* bytes for microbatch 0 alone"),
        ([VLM, "batches={type: list, batches: [[{vision: [1]}]]}"], "items of vision, and none of text"),
        ([LM, "batches.items={audio: {low: 1, high: 2, size: 1}}"], "has no module audio"),
        ([LM, "profile=gone.yaml"], r"gone\.yaml does not exist"),
        ([LM, "batches.microbatches=0"], "batches"),
        ([LM, "ranks=0"], "ranks"),
    ],
)
def test_what_cannot_be_planned_is_one_line(words, why, capsys, tmp_path, monkeypatch):
    assert main(["plan", "pipeline", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.search(why, captured.err)
    assert len(captured.err.splitlines()) == 1
    assert not (ROOT / "a.csv").exists()


def test_a_study_prints_its_table_or_its_numbers(capsys):
    assert main(["sim", "pipeline", "memory"]) == 0
    assert "no plan got stuck" in capsys.readouterr().out
    assert main(["sim", "pipeline", "mixes", "--evaluations", "1", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["mixes"]) == list(study.MIXES)


def test_the_ablation_stands_beside_what_is_reported(capsys):
    assert main(["sim", "pipeline", "ablation", "--evaluations", "2"]) == 0
    text = capsys.readouterr().out
    assert "22.27, +17.3%" in text
    assert "16.05, +62.8%" in text
    assert "reported, not measured by us: PipeWeaver" in text


def test_a_measured_profile_can_be_studied(tmp_path, capsys):
    sizes = {"sizes": (0, 512), "forward": (1e-4, 5e-3), "backward": (2e-4, 1e-2), "saved": (0, 1e6), "kept": (0, 1e6)}
    layer = LayerProfile(**sizes, input=(2e-4, 6e-3), weight=(1e-4, 5e-3))
    profile = published.profile("37b")
    modules = tuple(config.dataclasses.replace(m, layer=layer, layers=4, layer_parameters=0) for m in profile.modules)
    file = tmp_path / "f.json"
    PipelineProfile(model="mine", device="d", modules=modules).save(file)
    words = ["--ranks", "2", "--segments", "1,1", "--tokens", "512", "--picture", "64", "--evaluations", "1"]
    assert main(["sim", "pipeline", "drift", "--profile", str(file), *words]) == 0
    assert "Drifting mixes, mine" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["drift", "--evaluations", "0"], "--evaluations 0: try at least one order"),
        (["drift", "--segments", "2"], "--segments 2: give those of vision and of text"),
        (["drift", "--segments", "9,99"], "64 layers for 396 chunks"),
        (["drift", "--ranks", "0"], "a pipeline of 0 ranks"),
        (["drift", "--part", "0"], "parts of vision hold 0 items"),
        (["drift", "--profile", str(PLANS / "pipeline-profile-t2v-s.yaml")], "has modules text, video"),
        (["drift", "--profile", "gone.yaml"], r"gone\.yaml does not exist"),
    ],
)
def test_what_cannot_be_simulated_is_one_line(words, why, capsys):
    assert main(["sim", "pipeline", *words]) == 2
    error = capsys.readouterr().err
    assert re.search(why, error)
    assert len(error.splitlines()) == 1


def flops(
    width: int, inner: int, tokens: float, length: float, *, keys: int | None, matrices: int
) -> tuple[float, ...]:
    """FLOPs of a layer's products with weights, and of its attention, which is causal where ``keys`` are given."""
    projections = 2 * width * (width + keys) if keys else matrices_of_attention(matrices) * width * width
    weights = projections + (3 if keys else 2) * width * inner
    return 2 * weights * tokens, 4 * tokens * length * width * (0.5 if keys else 1.0)


def matrices_of_attention(matrices: int) -> int:
    return matrices


@pytest.mark.parametrize(
    ("name", "module", "shape", "items", "length", "keys", "matrices", "reached", "tp"),
    [
        ("vlm-s", "vision", VIT_5B, 8 * 2704, 2704, 0, 4, 0.19, 4),
        ("vlm-s", "text", LLAMA_8B, 8192, 8192, 1024, 0, 0.31, 4),
        ("vlm-m", "text", QWEN_32B, 8192, 8192, 1024, 0, 0.31, 8),
        ("t2v-l", "video", DIT_30B, 24960, 24960, 0, 8, 0.31, 8),
    ],
)
def test_profiles_without_published_times_follow_from_flops(
    name, module, shape, items, length, keys, matrices, reached, tp
):
    weights, attention = flops(*shape, items, length, keys=keys, matrices=matrices)
    rate = 989e12 * reached * tp
    layer = published.profile(name).module(module).layer
    found = [values[-1] for values in (layer.forward, layer.backward, layer.input, layer.weight)]
    wanted = [weights + attention, 2 * (weights + attention), weights + 2 * attention, weights]
    assert found == pytest.approx([value / rate for value in wanted], rel=1e-3)


def test_the_published_times_of_the_37b_model():
    vision, text = published.profile("37b").modules
    for module, size, seconds in ((vision, 8, 6.75e-3), (text, 8192, 10.5e-3)):
        cost = module.layer.at(size)
        assert cost.forward + cost.backward == pytest.approx(seconds)
        assert cost.backward == pytest.approx(2 * cost.forward)
        assert cost.input == cost.weight
