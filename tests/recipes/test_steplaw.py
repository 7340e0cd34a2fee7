"""The sweep: its text and corpus, one stream for every batch size, a small sweep end to end, and the recorded one."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
from transformers import AutoTokenizer

from data.drawn import grammar
from data.drawn.grammar import Grammar
from recipes.protocol import load_config
from recipes.steplaw import data, model, report
from recipes.steplaw.recipe import train
from stepstack.config import ROOT, ConfigError
from stepstack.core.run import Run
from stepstack.models.lm import tiny
from tests import tools

CELLS = "{hidden: 16, intermediate: 32, layers: 1, heads: 2, tokens: 4096}"
SMALL = (
    f"cells=[{CELLS}, {CELLS.replace('4096', '8192')}, {CELLS.replace('hidden: 16', 'hidden: 24')}, "
    f"{CELLS.replace('4096', '6144').replace('}', ', held_out: true}')}]",
    "lr=[0.003, 0.012, 0.048]",
    "batch=[4, 8, 16]",
    "sequence=32",
    "held_out_rows=64",
    "trackers=[]",
    "window=0.5",
)
GRAMMAR = Grammar(words=32, classes=4, successors=2, typos=0.2)


def small(folder, *more):
    return load_config("steplaw-tiny", [f"dir={folder}", "name=small", *SMALL, *more])


def test_text_is_a_pure_function_however_it_is_asked_for():
    whole = grammar.rows(GRAMMAR, 3, 0, 0, 600, 33)
    assert (grammar.rows(GRAMMAR, 3, 0, 250, 20, 33) == whole[250:270]).all()
    assert whole.min() >= 0
    assert whole.max() < GRAMMAR.vocab
    assert (grammar.rows(GRAMMAR, 3, 1, 0, 600, 33) != whole).any()
    assert (grammar.rows(GRAMMAR, 4, 0, 0, 600, 33) != whole).any()


def test_text_without_typos_is_spelled_from_the_lexicon():
    clean = Grammar(words=32, classes=4, successors=2, typos=0.0)
    lang = grammar.language(clean, 3)
    words = {grammar.show(row[:n]) for row, n in zip(lang.spelling_VT, lang.length_V, strict=True)}
    written = grammar.show(grammar.rows(clean, 3, 0, 0, 1, 400)[0])
    at = 0
    while at < len(written) - grammar.MAX_WORD_CHARACTERS:
        [word] = [w for w in words if written.startswith(w, at)][:1]
        at += len(word)
    dirty = grammar.rows(GRAMMAR, 3, 0, 0, 256, 200)
    share = float((dirty != grammar.rows(clean, 3, 0, 0, 256, 200)).mean())
    assert share == pytest.approx(0.2 * (1 - 1 / GRAMMAR.vocab), abs=0.01)


def test_every_batch_size_reads_the_same_stream(tmp_path):
    cfg = small(tmp_path)
    read = [
        [row.ids for step in range(32 // size) for row in model.batch(cfg, data.TRAIN, step * size, size)]
        for size in (4, 16)
    ]
    assert read[0] == read[1]


def test_the_schedule_ends_at_one_learning_rate_and_warms_up_for_a_tenth_at_most(tmp_path):
    cfg = small(tmp_path)
    for point in cfg.points:
        made = model.optim(cfg, point)
        assert made.lr * made.schedule.factor(point.steps, point.steps) == pytest.approx(1e-5)
        assert made.schedule.warmup == min(10, point.steps // 10)


def test_models_have_the_parameters_that_their_cell_says(tmp_path):
    cfg = small(tmp_path)
    for cell in cfg.cells:
        blocks = model.build(cfg, cell).model.layers
        assert cell.params == sum(p.numel() for p in blocks.parameters() if p.ndim == 2)


def test_parts_share_the_points_between_machines(tmp_path):
    whole = small(tmp_path).points
    parts = [small(tmp_path, f"part=[{k}, 5]").points for k in range(5)]
    assert sorted(p.name for part in parts for p in part) == sorted(p.name for p in whole)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("part=[2, 2]", "must be [k, n]"),
        ("batch=[128]", "give it more tokens"),
        ("launch.processes_per_node=8", "8 processes"),
    ],
)
def test_impossible_sweeps_are_refused(tmp_path, more, said):
    with pytest.raises(ConfigError, match=said.replace("[", r"\[")):
        small(tmp_path, more)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Stopped after 5 points, then gone on with."""
    folder = tmp_path_factory.mktemp("steplaw")
    with pytest.raises(SystemExit, match="0"):
        train(Run(small(folder), stop_after=5))
    first = (folder / "small" / "points").iterdir()
    times = {p.name: (p / "result.json").stat().st_mtime_ns for p in first}
    train(Run(small(folder)))
    return folder / "small", times


def test_a_stopped_sweep_goes_on_where_it_stood(swept):
    folder, times = swept
    assert len(times) == 5
    assert all((folder / "points" / n / "result.json").stat().st_mtime_ns == at for n, at in times.items())
    assert len(list((folder / "points").iterdir())) == 36


def test_a_sweep_leaves_its_runs_a_law_and_a_page(swept):
    folder, _ = swept
    rows = list(csv.DictReader((folder / "sweep.csv").open()))
    assert len(rows) == 36
    losses = [float(row["loss"]) for row in rows]
    assert all(math.isfinite(x) and 1 < x < 3.6 for x in losses)  # ln 28 = 3.33 knows nothing
    assert len({f"{x:.6f}" for x in losses}) == 36
    said = json.loads((folder / "fit.json").read_text())
    assert "lr" in said["laws"]["best"]
    assert {one["law"] for one in said["checks"]} >= {"Step Law, extrapolated", "fitted here: best"}
    assert all(one["nearest"] >= 0 for one in said["checks"])
    page = (folder / "report.html").read_text()
    assert page.count("data:image/svg") >= 4  # a contour plot a cell
    assert "Held-out cells" in page
    assert len(tools.page_data(folder / "report.html")["charts"]["Loss"]["lines"][0]["y"]) == 36
    assert tools.unexplained(folder) == []


def test_longer_training_and_tuning_pay(swept):
    folder, _ = swept
    shaping, _ = report.read_cells(folder / "sweep.csv")
    brief, long = (next(g for g in shaping if g.tokens == d and g.params == shaping[0].params) for d in (4096, 8192))
    assert long.loss.min() < brief.loss.min()
    assert brief.excess.max() > 0.02


def test_a_run_that_diverges_is_a_loss_of_infinity(tmp_path):
    cfg = small(tmp_path, "lr=[1e6]", "clip=1e6", f"cells=[{CELLS}]", "batch=[4]")
    found = model.measure(Run(cfg), cfg.points[0])
    assert found["loss"] == math.inf


@pytest.fixture
def corpus(tmp_path):
    tiny.tokenizer().save_pretrained(tmp_path / "tokenizer")
    lines = [json.dumps({"text": f"document {i} says {i * i}. " * 4}) for i in range(200)]
    (tmp_path / "docs.jsonl").write_text("\n".join(lines) + "\n")
    settings = f"{{type: corpus, folder: {tmp_path / 'rows'}, dataset: json, files: [{tmp_path / 'docs.jsonl'}], "
    return f"data={settings}tokenizer: {tmp_path / 'tokenizer'}, vocab: 512, shuffle: 64}}"


def test_a_corpus_becomes_rows_of_whole_documents(corpus, tmp_path):
    cfg = small(tmp_path, corpus, f"cells=[{CELLS}]", "batch=[4]", "held_out_rows=16")
    assert data.prepare(cfg) == str(tmp_path / "rows")
    rows = data.token_rows(cfg, data.TRAIN, 0, 128)
    assert rows.shape == (128, 33)
    held_out = data.token_rows(cfg, data.HELD_OUT, 0, 16)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert tokenizer.decode(held_out[0]).startswith("document ")
    assert tokenizer.eos_token_id in rows
    assert (data.token_rows(cfg, data.TRAIN, 5, 3) == rows[5:8]).all()
    with pytest.raises(ConfigError, match="holds 128 rows"):
        data.token_rows(cfg, data.TRAIN, 120, 9)
    assert math.isfinite(model.measure(Run(cfg), cfg.points[0])["loss"])


def test_a_corpus_that_is_missing_or_too_short_says_so(corpus, tmp_path):
    cfg = small(tmp_path, corpus, f"cells=[{CELLS.replace('4096', '400000')}]", "batch=[4]")
    with pytest.raises(ConfigError, match="stepstack data"):
        data.token_rows(cfg, data.TRAIN, 0, 1)
    with pytest.raises(ConfigError, match="ended after"):
        data.prepare(cfg)


def test_packing_drops_only_the_end():
    documents = [[1, 2, 3], [4], [5, 6, 7, 8, 9], [10]]
    assert list(data.packed(iter(documents), 3)) == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


def test_the_recorded_sweep_is_convex_and_its_law_holds_on_the_cell_that_it_never_saw():
    said = json.loads((ROOT / "evals" / "results" / "steplaw-tiny-seed1.json").read_text())["fit"]
    assert all(cell["surface"]["convex"] for cell in [*said["grids"], *said["held_out"]])
    by_law = {one["law"]: one for one in said["checks"]}
    fitted, published = by_law["fitted here: surface"], by_law["Step Law, extrapolated"]
    assert fitted["interpolated"] < 0.001
    assert fitted["interpolated"] < published["interpolated"]
    assert np.log(fitted["lr_factor"]) == pytest.approx(0, abs=np.log(2))
