"""Grids, surfaces, power laws and judges: known laws are found again, bad tables are refused, released claims hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize

from recipes.steplaw.analysis import judge, released, summary
from stepstack.cli import main as cli
from stepstack.config import ROOT, ConfigError
from stepstack.planning.steplaw import advice, fit, grids, laws
from stepstack.planning.steplaw.grids import Columns, LossGrid
from stepstack.planning.steplaw.laws import PowerLaw

SHARED = Path(os.environ.get("STEPSTACK_SHARED", ROOT.parent / "shared")) / "data" / "steplaw"
needs_data = pytest.mark.skipif(
    not (SHARED / released.DENSE).is_file(), reason=f"needs {SHARED} (set STEPSTACK_SHARED): no licence, never copied"
)
TRUE = PowerLaw((2.0, -0.7, 0.25), (0.7, 0.0, 0.55))
CELLS = [(n, d) for n in (1e8, 3e8, 1e9) for d in (4e9, 2e10, 1e11)]
CURVATURE = np.array([[0.02, -0.008], [-0.008, 0.015]])


def made(params: float, tokens: float, noise: float = 0.0, seed: int = 0, law: PowerLaw = TRUE) -> LossGrid:
    """11 x 10 runs on a quadratic valley around the law's point; all have the same grid lines, as the authors' have."""
    rng = np.random.default_rng([seed, int(params), int(tokens)])
    lr, batch = (x.ravel() for x in np.meshgrid(2.0 ** np.arange(-13, -5, 0.75), 2.0 ** np.arange(16, 23, 0.75)))
    centre = np.log([float(x) for x in law(params, tokens)])
    offset = np.log(np.stack([lr, batch], axis=1)) - centre
    loss = (
        2.5 * (1 + np.einsum("ni,ij,nj->n", offset, CURVATURE, offset) / 2) * (1 + noise * rng.standard_normal(len(lr)))
    )
    return LossGrid(params, tokens, lr, batch, loss)


def table(path: Path, some: list[LossGrid]) -> Path:
    rows = [
        f"{g.params},{g.tokens},{lr},{batch / 64},{loss}"
        for g in some
        for lr, batch, loss in zip(g.lr, g.batch, g.loss, strict=True)
    ]
    path.write_text("N,D,lr,bs,loss\n" + "\n".join(rows) + "\n")
    return path


def test_a_surface_finds_the_minimum_that_a_general_optimizer_finds():
    result = fit.surface(made(3e8, 2e10, noise=1e-4), window=0.05)
    assert result.convex
    oracle = minimize(lambda x: float(result(np.exp(x[0]), np.exp(x[1]))), result.centre + 0.5, method="Nelder-Mead")
    assert oracle.x == pytest.approx(result.centre, abs=1e-3)
    lr, batch = TRUE(3e8, 2e10)
    assert (result.lr, result.batch) == pytest.approx((float(lr), float(batch)), rel=0.05)


def test_the_plateau_is_where_the_surface_has_risen():
    result = fit.surface(made(3e8, 2e10), window=0.05)
    wide, tall = result.plateau(1e-3)
    assert float(result(result.lr * wide, result.batch)) == pytest.approx(result.floor * 1.001)
    assert float(result(result.lr, result.batch / tall)) == pytest.approx(result.floor * 1.001)


@pytest.mark.parametrize("estimator", ["near", "surface", "best"])
def test_a_known_law_is_found_again(estimator):
    result = fit.power_law(fit.ESTIMATORS[estimator]([made(*cell) for cell in CELLS]))
    loose = 1e-6 if estimator == "surface" else 0.12  # the others see grid lines only
    assert result.lr[1:] == pytest.approx(TRUE.lr[1:], abs=loose)
    assert result.batch[2] == pytest.approx(TRUE.batch[2], abs=loose)


def test_bootstrap_intervals_hold_the_truth_as_often_as_they_say():
    """100 draws of noisy optima; 95 % nominal, and a percentile interval of few points falls somewhat short."""
    rng, hits = np.random.default_rng(0), 0
    for draw in range(100):
        n, d = np.array([CELLS[i % 9] for i in range(54)]).T
        lr, batch = TRUE(n, d)
        optima = fit.Optima(
            n, d, lr * np.exp(0.3 * rng.standard_normal(54)), batch * np.exp(0.3 * rng.standard_normal(54))
        )
        low, high = fit.interval([law.lr[2] for law in fit.bootstrap(optima, 200, seed=draw)])
        hits += low <= TRUE.lr[2] <= high
    assert 86 <= hits <= 100


def test_ordinary_least_squares_is_numpys():
    optima = fit.near_best([made(*cell, noise=1e-3) for cell in CELLS])
    slope, constant = np.polyfit(np.log(optima.tokens), np.log(optima.batch), 1)
    law = fit.power_law(optima)
    assert (np.log(law.batch[0]), law.batch[2]) == pytest.approx((constant, slope))


def test_grids_that_determine_no_law_are_refused():
    with pytest.raises(ValueError, match="hardly varies"):
        fit.power_law(fit.best([made(1e8, d) for d in (4e9, 2e10, 1e11)]))
    with pytest.raises(ValueError, match="not in step"):
        fit.power_law(fit.best([made(x, 20 * x) for x in (1e8, 3e8, 1e9)]))


def test_a_surface_of_too_few_runs_or_of_one_batch_is_refused():
    whole = made(1e8, 2e10)
    with pytest.raises(ValueError, match="widen the window"):
        fit.surface(whole, window=1e-6)
    line = whole.batch == whole.batch[0]
    with pytest.raises(ValueError, match="do not span"):
        fit.surface(LossGrid(1e8, 2e10, whole.lr[line], whole.batch[line], whole.loss[line]), window=10.0)


def test_a_saddle_has_no_minimum():
    whole = made(1e8, 2e10)
    u, v = whole.x.T - whole.x.mean(axis=0)[:, None]
    saddle = LossGrid(1e8, 2e10, whole.lr, whole.batch, 3 + 0.001 * (u * u - v * v))
    assert not fit.surface(saddle, window=1.0).convex
    with pytest.raises(ValueError, match="extend the grid"):
        fit.minima([saddle], window=1.0)


def test_excess_loss_by_hand():
    grid = LossGrid(
        1e8, 2e10, np.array([1e-3, 1e-2, 1e-3, 1e-2]), np.array([1e5, 1e5, 1e6, 1e6]), np.array([2.0, 2.2, 2.1, 2.4])
    )
    assert judge.at_nearest(grid, 1.2e-3, 9e5) == pytest.approx(0.05)
    assert judge.at_nearest(grid, 1e-9, 1.0) == 0
    assert judge.at_nearest_lr(grid, 9e-3) == pytest.approx(0.1)
    assert judge.interpolated(grid, 10**-2.5, 1e5) == pytest.approx(0.05)
    assert judge.interpolated(grid, 1e-9, 1e5) == pytest.approx(0.0)  # outside: at the edge


def test_a_held_out_law_beats_a_wrong_one_and_does_not_see_the_grid():
    some = [made(*cell, noise=2e-4) for cell in CELLS]
    family = judge.LawFamily("surface", False)
    wrong = PowerLaw((TRUE.lr[0] * 3, *TRUE.lr[1:]), TRUE.batch)
    ours, theirs = judge.held_out(family, some), judge.excess(judge.at_grid(wrong), some)
    assert judge.paired(ours.interpolated, theirs.interpolated)[2] < 0
    moved = made(*CELLS[4], law=wrong)
    observed = judge.held_out(family, [*some[:4], moved, *some[5:]])
    assert observed.nearest[4] > ours.nearest[4] + 1e-3  # its own runs moved, its law did not follow


def test_the_choice_of_a_family_is_made_without_the_grid():
    some = [made(*cell, noise=2e-4) for cell in CELLS]
    excess, chosen = judge.held_out_choice([judge.LawFamily("surface", False), judge.LawFamily("best", True)], some)
    assert len(chosen) == len(excess.nearest) == len(CELLS)


def test_valleys_are_counted_by_slice():
    smooth = made(1e8, 2e10)
    good, total = judge.valleys(smooth)
    assert (good, total) == (11 + 10, 11 + 10)
    bumpy = LossGrid(
        1e8, 2e10, smooth.lr, smooth.batch, np.where(np.arange(len(smooth.lr)) % 2, smooth.loss, smooth.loss * 1.1)
    )
    assert judge.valleys(bumpy)[0] < good


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1e8,1e10,x,4,2.5", "lr = 'x' is no number"),
        ("1e8,1e10,1e-3,4", "loss = None"),
        ("1e8,1e10,-1e-3,4,2.5", "lr = -1e-3 must be above 0"),
        ("inf,1e10,1e-3,4,2.5", "N = inf must be above 0 and fi"),
        ("1e8,1e10,1e-3,4,-inf", "loss = -inf"),
        ("1e8,1e10,2e-3,8,2.4", "occurs twice"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(row, message, tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text(f"N,D,lr,bs,loss\n1e8,1e10,2e-3,8,2.5\n{row}\n")
    with pytest.raises(ConfigError) as error:
        grids.read([path], Columns())
    assert f"{path}:3: " in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize("loss", ["", "  ", "nan", "NaN", "inf"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_tables_of_spreadsheets_and_of_pandas_are_read(loss, encoding, tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text(f"N,D,lr,bs,loss\n1e8,1e10,2e-3,8,2.5\n1e8,1e10,4e-3,8,{loss}\n", encoding=encoding)
    [grid] = grids.read([path], Columns())
    assert (grid.loss.tolist(), grid.diverged) == ([2.5], 1)


def test_a_blank_that_is_no_loss_is_named(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text("N,D,lr,bs,loss\n1e8,1e10,,8,2.5\n")
    with pytest.raises(ConfigError, match=r"runs\.csv:2: lr = '' is no number"):
        grids.read([path], Columns())


def test_many_bad_rows_are_one_error(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text("N,D,lr,bs,loss\n" + "1e8,1e10,x,8,2.5\n" * 9)
    with pytest.raises(ConfigError, match="and 4 more"):
        grids.read([path], Columns())


@pytest.mark.parametrize(
    ("text", "message"), [("N,D,lr\n1,1,1\n", "no column 'bs', 'loss'"), ("N,D,lr,bs,loss\n", "no rows"), ("", "none")]
)
def test_a_table_without_columns_or_rows_is_refused(text, message, tmp_path):
    (tmp_path / "runs.csv").write_text(text)
    with pytest.raises(ConfigError, match=message):
        grids.read([tmp_path / "runs.csv"], Columns())


def test_diverged_runs_are_counted_and_left_out(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text("N,D,lr,bs,loss\n1e8,1e10,1e-3,8,2.5\n1e8,1e10,1e-1,8,nan\n1e8,1e10,2e-1,8,inf\n")
    [grid] = grids.read([path], Columns())
    assert (grid.diverged, len(grid.loss)) == (2, 1)
    path.write_text("N,D,lr,bs,loss\n1e8,1e10,1e-1,8,nan\n")
    with pytest.raises(ConfigError, match="every run"):
        grids.read([path], Columns())


def test_the_command_fits_a_table(tmp_path, capsys):
    path, page = table(tmp_path / "runs.csv", [made(*cell) for cell in CELLS]), tmp_path / "fit.html"
    words = ["plan", "steplaw", "fit", str(path), "--sequence", "64", "--window", "0.05", "--draws", "50"]
    assert cli.main([*words, "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert output["laws"]["surface"]["lr"] == pytest.approx(TRUE.lr, rel=1e-6)
    low, high = output["laws"]["near"]["lr_interval"][1]
    assert low <= TRUE.lr[1] <= high
    assert all(one["surface"]["convex"] for one in output["grids"])
    assert cli.main([*words, "--html", str(page)]) == 0
    assert "D^0.250" in capsys.readouterr().out
    assert page.read_text().count("data:image/svg") == len(CELLS)


def test_the_command_names_the_bad_row(tmp_path, capsys):
    path = tmp_path / "runs.csv"
    path.write_text("N,D,lr,bs,loss\n1e8,1e10,much,8,2.5\n")
    assert cli.main(["plan", "steplaw", "fit", str(path)]) == 2
    assert f"{path}:2: lr = 'much'" in capsys.readouterr().err


def test_two_grids_still_get_their_optima(tmp_path, capsys):
    path = table(tmp_path / "runs.csv", [made(*cell) for cell in CELLS[:2]])
    assert cli.main(["plan", "steplaw", "fit", str(path), "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert "hardly varies" in output["laws"]["best"]["why"]
    assert len(output["grids"]) == 2


def test_the_commands_run_without_torch(tmp_path):
    path = table(tmp_path / "runs.csv", [made(*cell) for cell in CELLS])
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "model_type": "llama",
                "vocab_size": 9,
                "hidden_size": 8,
                "intermediate_size": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 1,
            }
        )
    )
    lines = [
        ["--params", "1e9", "--tokens", "1e11", "--html", str(tmp_path / "a.html")],
        ["--config", str(tmp_path), "--tokens", "1e11", "--json"],
        ["fit", str(path), "--draws", "20", "--html", str(tmp_path / "b.html")],
    ]
    script = f"""
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "accelerate"):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hidden())
from stepstack.cli import main as cli
sys.exit(max(cli.main(["plan", "steplaw", *line]) for line in {lines!r}))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Step Law" in done.stdout


@pytest.fixture(scope="module")
def reproduced():
    return released.reproduce(SHARED)


@needs_data
def test_the_released_fits_and_counts_are_the_papers(reproduced):
    assert reproduced["bootstrap"]["lr"] == pytest.approx([1.797, -0.7129, 0.3075], rel=1e-3)
    assert reproduced["bootstrap"]["batch"] == pytest.approx([0.5807, 0.5709], rel=1e-3)
    assert reproduced["counts"] == {"dense": [1911, 1911], "moe": [708, 708], "moe_active": [708, 708]}


@needs_data
def test_refits_are_those_known_and_the_exponent_of_tokens_does_not_agree(reproduced):
    refits = reproduced["refits"]
    assert refits["near"]["lr"] == pytest.approx([77.7, -0.766, 0.197], rel=2e-3)
    assert refits["near"]["batch"] == pytest.approx([0.2085, 0, 0.6125], rel=2e-3)
    assert refits["surface"]["batch"] == pytest.approx([0.546, 0, 0.569], rel=2e-3)
    assert refits["near"]["lr_interval"][2][1] < laws.STEP.lr[2]
    assert refits["near"]["batch_interval"][2][0] < laws.STEP.batch[2] < refits["near"]["batch_interval"][2][1]


@needs_data
def test_excess_losses_are_those_known_and_rank_the_laws(reproduced):
    excess = {name: one["nearest"] for name, one in reproduced["excess"].items()}
    assert excess["Step Law"] == pytest.approx(0.957, abs=0.001)
    assert sorted(excess, key=excess.__getitem__) == ["Step Law", "Porian", "DeepSeek", "OpenAI"]
    assert reproduced["excess"]["OpenAI"]["lr_only"] == pytest.approx(9.84, abs=0.01)
    assert reproduced["moe"]["total"]["nearest"] == pytest.approx(1.59, abs=0.01)
    assert reproduced["moe"]["active"]["nearest"] == pytest.approx(10.0, abs=0.05)


@needs_data
def test_surfaces_have_minima_and_give_the_plateau(reproduced):
    assert reproduced["convexity"]["dense"]["surfaces"] == [17, 17]
    assert reproduced["convexity"]["moe"]["surfaces"] == [16, 16]
    result = reproduced["plateau"]
    assert (result["lr"], result["batch"]) == pytest.approx((advice.PLATEAU_LR, advice.PLATEAU_BATCH), abs=1e-3)


@needs_data
def test_a_refit_beats_step_law_on_grids_that_it_never_saw(reproduced):
    held_out = reproduced["held_out"]
    step, nested = held_out["step"]["dense"], held_out["nested"]
    assert nested["nearest"] < step["nearest"]
    assert nested["interpolated_gap"][2] < 0
    result = reproduced["refits"]["near, dense and MoE; batch of N and D"]
    assert laws.REFIT.lr == pytest.approx(result["lr"], rel=1e-3)
    assert laws.REFIT.batch == pytest.approx(result["batch"], rel=1e-3)


@needs_data
def test_contours_are_drawn_for_every_released_grid(tmp_path):
    dense, _ = released.load(SHARED)
    page = summary.page("dense", summary.summarise(dense[:3], draws=0), dense[:3], tmp_path / "page.html")
    assert page.read_text().count("data:image/svg") == 3
