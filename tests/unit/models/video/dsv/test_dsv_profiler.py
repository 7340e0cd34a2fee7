"""How sparse attention is, and where sparse attention pays: against counting, and files of another machine refused."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stepstack.cli import main as cli
from stepstack.config import ConfigError
from stepstack.models.video.dsv import profiler
from stepstack.models.video.dsv.speed import AttentionShape, SpeedProfile, SpeedRow, device_name, measure, parse_grid
from stepstack.ops.selection import Blocks

shares = st.lists(st.integers(1, 9), min_size=1, max_size=6)


@given(shares, st.sampled_from([0.3, 0.5, 0.9]))
def test_critical_is_the_smallest_set_that_holds_the_mass(counts, mass):
    result = profiler.critical(torch.tensor(counts, dtype=torch.float32), mass)
    need = mass * sum(counts)
    sizes = range(1, len(counts) + 1)
    least = next(n for n in sizes if any(sum(c) >= need - 1e-6 for c in combinations(counts, n)))
    assert result.sum() == least
    assert sum(c for c, taken in zip(counts, result.tolist(), strict=True) if taken) >= need - 1e-5


def test_golden_sparsity():
    share = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.25, 0.25, 0.25, 0.25], [0.0, 0.0, 1.0, 0.0]])
    assert profiler.sparsity(share, 0.9).tolist() == pytest.approx([0.25, 0.0, 0.75])


def test_mass_is_summed_by_key_block():
    blocks = Blocks(torch.tensor([0, 2, 3, 5], dtype=torch.int32), 2)
    assert profiler.by_key_block(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]]), blocks).tolist() == [[3.0, 3.0, 9.0]]


def test_kept_rounds_up_and_keeps_one():
    assert profiler.blocks_to_keep(torch.tensor([0.0, 0.3, 0.31, 0.9, 1.0]), 10) == [10, 7, 7, 1, 1]


def test_the_moving_average_is_the_sum_it_stands_for():
    values = [torch.tensor([float(x), -float(x)]) for x in (3, 1, 4, 1, 5)]
    result = None
    for value in values:
        result = profiler.smooth(result, value, 0.9)
    weights = [0.9**4, *(0.1 * 0.9 ** (4 - i) for i in range(1, 5))]
    assert sum(weights) == pytest.approx(1)
    assert result.tolist() == pytest.approx(sum(w * v for w, v in zip(weights, values, strict=True)).tolist())


SHAPE = AttentionShape(device="A", dtype="float32", heads=2, head_dim=8, cube=(2, 2, 2), selector="low_rank", rank=8)


def profile(*excess: float, grid=(4, 4, 4)) -> SpeedProfile:
    """Dense takes 1 s, sparse 1 s + excess, at sparsities 0, 0.5 and 0.9."""
    rows = [
        SpeedRow(grid=grid, sparsity=s, dense_s=1.0, sparse_s=1 + e)
        for s, e in zip((0.0, 0.5, 0.9), excess, strict=True)
    ]
    return SpeedProfile(shape=SHAPE, rows=tuple(rows), provenance={})


def test_the_threshold_is_where_the_lines_cross():
    assert profile(1.0, 0.25, -0.75).threshold((4, 4, 4)) == pytest.approx(0.6)
    assert profile(1.0, 0.5, 0.25).threshold((4, 4, 4)) is None
    assert profile(-0.1, -0.5, -0.8).threshold((4, 4, 4)) == 0.0
    assert profile(-0.1, 0.5, -0.5).threshold((4, 4, 4)) == pytest.approx(0.7)  # a lucky low one counts for nothing


def test_a_profile_of_another_device_or_shape_is_refused(tmp_path):
    profile(1, 0, -1).check(SHAPE)
    with pytest.raises(
        ConfigError, match=r"device: profiled A, here B; heads: profiled 2, here 4.*stepstack profile dsv"
    ):
        profile(1, 0, -1).check(replace(SHAPE, device="B", heads=4))
    with pytest.raises(ConfigError, match=r"no grid 8x4x4, only 4x4x4"):
        profile(1, 0, -1).threshold((8, 4, 4))
    with pytest.raises(ConfigError, match=r"no speed profile at .*gone\.json"):
        SpeedProfile.load(tmp_path / "gone.json")
    for text in ("{", "[]", json.dumps({"shape": {}, "rows": [], "provenance": {}})):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ConfigError, match=r"bad\.json is no speed profile"):
            SpeedProfile.load(tmp_path / "bad.json")


def test_the_command_measures_this_device_and_saves_what_loads(tmp_path, capsys):
    file = tmp_path / "speed.json"
    line = f"profile dsv 2x4x4 --heads 2 --head-dim 8 --cube 2x2x2 --dtype float32 --device cpu --out {file}"
    assert cli.main(line.split()) == 0
    result = SpeedProfile.load(file)
    result.check(replace(SHAPE, device=device_name(torch.device("cpu")), rank=16))
    assert {row.grid for row in result.rows} == {(2, 4, 4)}
    assert all(row.dense_s > 0 and row.sparse_s > 0 for row in result.rows)
    assert result.provenance["versions"]["torch"]
    assert "2x4x4: " in capsys.readouterr().out


def test_pooled_selection_is_measured_without_predictors():
    result = measure(replace(SHAPE, selector="pooled"), [(2, 2, 2)], torch.device("cpu"), rounds=1)
    assert len({row.sparsity for row in result.rows}) == len(result.rows) > 5


def test_a_grid_is_three_numbers():
    assert parse_grid("21x45x80") == (21, 45, 80)
    for text in ("21x45", "0x4x4", "axbxc"):
        with pytest.raises(ConfigError, match="FxHxW"):
            parse_grid(text)
