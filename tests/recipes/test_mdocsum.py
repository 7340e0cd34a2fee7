"""The M-DocSum recipe end to end, in small: both stages, what stands beside DPO, a folder of papers, resume."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file

from data.errors import DataError
from data.media.documents import FIGURE
from recipes.mdocsum import data, recipe, stages
from recipes.mdocsum.config import PAIR_KINDS
from recipes.protocol import load_config
from stepstack.cli import main as cli
from stepstack.config import ConfigError
from stepstack.core.run import Run
from stepstack.harness import answers as io
from stepstack.report import jsonl
from stepstack.scoring import documents
from tests import tools
from tests.cards import check_card

SMALL = (
    "save.every=2",
    "trackers=[]",
    "evals=[test, exchanged]",
    "model.hidden=48",
    "model.layers=2",
    "model.intermediate=64",
    "model.tower=32",
    "data.train=40",
    "data.select=4",
    "data.test=8",
    "sft.steps=3",
    "sft.batch=4",
    "pairs.papers=12",
    "pairs.margin=0.0",
    "pairs.kinds={sampled: 1, similar: 1, exchanged: 1, none: 1, number: 1, dropped: 1}",
    "pairs.sampling={n: 2, max_tokens: 24}",
    "score.max_tokens=24",
)
NO_OTHERS = tuple(f"pairs.kinds.{kind}=0" for kind in PAIR_KINDS if kind != "sampled")
DPO = (*SMALL, "second.steps=3", "second.batch=4")
CLOCK = ("time/", "cpu_s", "tokens_per_s", "mfu", "memory_gib")


def varied(made):
    """So small a model earns nothing: the real score plus a little that differs within groups."""

    def make(cfg):
        metric = made(cfg)
        return lambda rollouts: [
            replace(score, value=score.value + 0.1 * (rollout.ids[0] % 3))
            for rollout, score in zip(rollouts, metric(rollouts), strict=True)
        ]

    return make


def reset() -> None:
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def train(folder: Path, config: str, *words: str, stop_after: int | None = None) -> Path:
    reset()
    loaded = load_config(config, (f"dir={folder.parent}", f"name={folder.name}", *words))
    recipe.train(Run(loaded, stop_after=stop_after))
    return folder


def rows(file: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if not k.startswith(CLOCK)} for row in jsonl.read(file)]


def same_weights(a: Path, b: Path) -> bool:
    one, other = (load_file(place / "model.safetensors") for place in (a, b))
    return all((one[name] == other[name]).all() for name in other)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    return train(tmp_path_factory.mktemp("both") / "q", "mdocsum-tiny", *DPO)


@pytest.mark.slow
def test_both_stages_train(trained):
    assert check_card(trained).data.pipeline_tag == "image-text-to-text"
    first, second = rows(trained / "sft" / "metrics.jsonl"), rows(trained / "metrics.jsonl")
    assert [len(first), len(second)] == [3, 4]
    assert first[-1]["loss"] < first[0]["loss"]
    begin, *steps = second
    assert {"eval/match", "eval/parse", "eval/ts", "eval/accuracy"} <= begin.keys()
    assert steps[0]["policy/loss"] == pytest.approx(math.log(2) + steps[0]["loss"] - math.log(2))
    assert steps[0]["policy/chosen_reward"] == pytest.approx(0, abs=1e-5)
    assert {"policy/chosen_logp", "policy/rejected_logp", "policy/margin"} <= steps[-1].keys()
    models = [trained / place for place in ("base/model", "sft/model", "model")]
    assert not same_weights(models[0], models[1])
    assert not same_weights(models[1], models[2])
    assert {p.name for p in models[2].iterdir()} >= {"preprocessor_config.json", "tokenizer.json"}


@pytest.mark.slow
def test_pairs_are_kept_and_their_kinds_are_counted(trained):
    made = jsonl.read(trained / "pairs.jsonl")
    shares = json.loads((trained / "pairs.json").read_text())["kinds"]
    assert sum(kind["pairs"] for kind in shares.values()) == len(made)
    assert sum(kind["share"] for kind in shares.values()) == pytest.approx(1)
    assert len(shares) >= 3
    assert json.loads((trained / "reference.json").read_text())["pairs"]


@pytest.mark.slow
def test_the_report_shows_papers_and_summaries_side_by_side(trained):
    page = (trained / "report.html").read_text()
    for text in ("Held-out papers and their summaries", "Figures that were chosen", "Preference pairs"):
        assert text in page
    data = tools.page_data(trained / "report.html")
    assert [stage["name"] for stage in data["sets"][0]["stages"]] == ["instruction tuning", "DPO"]
    drawn = {line["label"] for line in data["charts"]["Log-probability of winners and losers"]["lines"]}
    assert {"policy/chosen_logp", "policy/rejected_logp"} <= drawn
    assert tools.unexplained(trained) == []
    assert page.count('<div class="side">') == 8
    assert "border-color: #009638" in page  # the reference's figures


@pytest.mark.slow
@pytest.mark.parametrize("stopped", ["first", "second"])
def test_a_stopped_run_goes_on_bit_for_bit(trained, tmp_path, monkeypatch, stopped):
    folder = tmp_path / "q"
    if stopped == "first":
        made = stages.stage
        monkeypatch.setattr(stages, "stage", lambda run, name: _stopping(made(run, name)))
        with pytest.raises(SystemExit):
            train(folder, "mdocsum-tiny", *DPO)
        monkeypatch.setattr(stages, "stage", made)
    else:
        with pytest.raises(SystemExit):
            train(folder, "mdocsum-tiny", *DPO, stop_after=1)
    train(folder, "mdocsum-tiny", *DPO)
    for file in ("metrics.jsonl", "sft/metrics.jsonl", "pairs.jsonl"):
        assert rows(folder / file) == rows(trained / file)
    assert same_weights(folder / "model", trained / "model")


def _stopping(run: Run) -> Run:
    run.stop_after = 1
    return run


@pytest.mark.slow
def test_eval_of_the_exported_model_says_the_same(trained):
    reset()
    assert cli.main(["eval", "mdocsum-tiny", f"dir={trained.parent}", f"name={trained.name}", *DPO]) == 0
    for task in ("test", "exchanged"):
        [again] = trained.glob(f"evals/model-*/{task}*/samples.jsonl")
        [after] = trained.glob(f"evals/after/{task}*/samples.jsonl")
        assert [s.text for s in io.read(again)] == [s.text for s in io.read(after)]
    result = json.loads(next(trained.glob("evals/after/exchanged*/result.json")).read_text())
    assert [m["name"] for m in result["metrics"]][:2] == ["figure match", "match at old places"]


@pytest.mark.slow
def test_checkpoints_are_evaluated(trained):
    reset()
    words = ["mdocsum-tiny", f"dir={trained.parent}", f"name={trained.name}", *DPO]
    assert cli.main(["eval", *words, "--checkpoints", "--tasks", "select"]) == 0
    scored = list(trained.glob("evals/checkpoints/step-*/select*/result.json"))
    assert [json.loads(file.read_text())["step"] for file in sorted(scored)] == [2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("config", ["mdocsum-tiny-gold", "mdocsum-tiny-chosen", "mdocsum-tiny-grpo"])
def test_what_stands_beside_dpo_trains_from_the_same_start(trained, tmp_path, monkeypatch, config):
    """The first stage is the same, bit for bit, so that the second ones can be compared."""
    monkeypatch.setattr(stages, "make_metric", varied(stages.make_metric))
    small = ("second.steps=2", "second.batch=4")
    if config == "mdocsum-tiny-grpo":
        small = ("second.steps=2", "second.prompts=2", "second.sampling={n: 2, max_tokens: 24}")
    folder = train(tmp_path / "q", config, *SMALL, *small)
    assert same_weights(folder / "sft" / "model", trained / "sft" / "model")
    assert not same_weights(folder / "sft" / "model", folder / "model")
    metrics = rows(folder / ("grpo/metrics.jsonl" if config == "mdocsum-tiny-grpo" else "metrics.jsonl"))
    assert len(metrics) == 3
    assert (folder / "report.html").is_file()
    assert (folder / "pairs.jsonl").is_file() == (config == "mdocsum-tiny-chosen")


@pytest.mark.slow
def test_the_first_stage_alone(tmp_path):
    folder = train(tmp_path / "q", "mdocsum-tiny-clean", *SMALL)
    assert not (folder / "sft").exists()
    assert len(rows(folder / "metrics.jsonl")) == 4
    assert (folder / "model" / "model.safetensors").is_file()


def write_papers(folder: Path) -> None:
    """Drawn papers as a folder in the benchmark's form."""
    cfg = load_config("mdocsum-tiny", DPO)
    for split in ("train", "select", "test"):
        (folder / split).mkdir(parents=True)
        for paper in data.documents(cfg, split)[:10]:
            text = paper.text
            for figure in paper.figures:
                name = f"{paper.index}-{figure.idx}.png"
                figure.picture.image().save(folder / split / name)
                text = text.replace(FIGURE, f"![{figure.caption}]({name})", 1)
            (folder / split / f"{paper.index:03}.md").write_text(text)
            (folder / split / f"{paper.index:03}.json").write_text(documents.write(paper.gold.paragraphs))


@pytest.mark.slow
def test_dpo_alone_on_a_folder_of_papers_from_the_first_stages_model(trained, tmp_path, capsys):
    """The form of mdocsum-7b-dpo: a pretrained model, its tower frozen, papers from files."""
    write_papers(tmp_path / "papers")
    words = (
        f"model={{type: pretrained, path: {trained / 'sft' / 'model'}, min_pixels: 784, freeze: tower}}",
        f"data={{type: folder, folder: {tmp_path / 'papers'}}}",
        "sft=null",
        "evals=[test]",
    )
    kept = tuple(word for word in DPO if not word.startswith(("model.", "data.", "sft.", "evals")))
    reset()
    assert cli.main(["data", "mdocsum-tiny", *kept, *words]) == 0
    assert "'train': 10, 'select': 4, 'test': 8" in capsys.readouterr().out
    folder = train(tmp_path / "q", "mdocsum-tiny", *kept, *words)
    before, after = (load_file(place / "model.safetensors") for place in (trained / "sft" / "model", folder / "model"))
    changed = {name for name in before if (before[name] != after[name]).any()}
    assert changed
    assert not any("visual" in name for name in changed)
    (tmp_path / "papers" / "test" / "000.json").write_text("[]")
    with pytest.raises(DataError, match=r"000\.json has 0 paragraphs"):
        train(tmp_path / "r", "mdocsum-tiny", *kept, *words)


@pytest.mark.slow
def test_a_cache_of_another_start_is_refused(trained, tmp_path):
    folder = tmp_path / "q"
    shutil.copytree(trained, folder)
    shutil.rmtree(folder / "checkpoints")
    config = folder / "config.json"
    config.write_text(config.read_text().replace(str(trained.parent), str(folder.parent)))
    cache = json.loads((folder / "reference.json").read_text())
    cache["key"]["weights"] = "0" * 64
    (folder / "reference.json").write_text(json.dumps(cache))
    with pytest.raises(ConfigError, match=r"reference\.json holds .* for other weights"):
        train(folder, "mdocsum-tiny", *DPO)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
def test_a_reference_beside_the_policy_gives_what_the_cached_one_gives(trained, tmp_path, lora):
    start = f"model={{type: pretrained, path: {trained / 'sft' / 'model'}, min_pixels: 784, freeze: none}}"
    adapters = (
        ("second.policy.lora={r: 4, targets: '.*language_model.*(q|v)_proj'}", "second.policy.optim.lr=1e-3")
        if lora
        else ()
    )
    kept = tuple(word for word in DPO if not word.startswith(("model.", "sft.")))
    folders = [
        train(tmp_path / name, "mdocsum-tiny", *kept, start, "sft=null", *adapters, f"second.reference={name}")
        for name in ("cached", "model")
    ]
    cached, beside = (rows(folder / "metrics.jsonl") for folder in folders)
    for one, other in zip(cached[1:], beside[1:], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-4)
        assert one["policy/margin"] == pytest.approx(other["policy/margin"], abs=1e-4)
    assert not (folders[1] / "reference.json").exists()
    assert cached[-1]["policy/margin"] != 0


@pytest.mark.slow
def test_no_pairs_is_an_error_that_says_so(trained, tmp_path):
    with pytest.raises(ConfigError, match=r"12 papers gave 0 pairs: lower pairs\.margin"):
        train(tmp_path / "q", "mdocsum-tiny", *DPO, *NO_OTHERS, "pairs.margin=1.0")
