"""What `bench dsv` does before and after the GPU: the same lists for every contestant, and what is shown."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention.flex_attention import BlockMask

from evals.bench import dsv, dsv_cpu
from evals.bench.dsv import BLOCK, OURS, SequenceShape
from stepstack.cli import main as cli
from stepstack.ops.selection import Blocks, Selection


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_without_a_gpu_it_says_so():
    with pytest.raises(ValueError, match="bench dsv needs a CUDA device and there is none"):
        dsv.measure()


def test_an_unknown_option_is_named(capsys):
    assert cli.main(["bench", "dsv", "steps=3"]) == 2
    assert "bench dsv has no option steps: there are rounds, longest, seed" in capsys.readouterr().err


def test_ragged_heads_keep_as_much_as_uniform_ones():
    shape = SequenceShape(64, 32768)
    uniform, ragged = (dsv.keep_counts(shape, 0.9, kind) for kind in ("uniform", "ragged"))
    assert set(uniform) == {51}
    assert (ragged[0], ragged[-1]) == (26, 77)
    assert sum(ragged) == pytest.approx(sum(uniform), rel=0.01)


def test_peers_get_the_same_blocks():
    queries, keys = Blocks.even(3 * BLOCK, BLOCK), Blocks.even(4 * BLOCK, BLOCK)
    mask = torch.rand(1, 2, 3, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    mask[0, 0, 1] = False
    counts, lists = dsv.padded_lists(Selection.from_mask(mask, queries, keys))
    nothing = torch.zeros_like(counts), torch.zeros_like(lists)
    flex = BlockMask.from_kv_blocks(*nothing, counts, lists, BLOCK, compute_q_blocks=False)
    assert torch.equal(flex.to_dense().bool(), mask)


def test_results_are_drawn_and_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dsv, "ROOT", tmp_path)
    row = {"dim": 64, "sparsity": 0.9, "k": "uniform", "pass": "forward"}
    rows = [{**row, "tokens": t, "who": OURS, "ms": 1.0, "times_limit": 1.3} for t in (32768, 65536)]
    rows.append({**row, "tokens": 32768, "who": "SDPA cuDNN", "failed": "No available kernel."})
    dsv.show({"bench": "dsv", "gpu": "none", "rows": rows, "provenance": dsv.provenance()})
    output = capsys.readouterr().out
    assert "1.30" in output
    assert "1.33" in output  # the goal
    assert (tmp_path / "evals" / "results" / "bench-dsv.png").stat().st_size > 0


def test_the_cpus_part_measures_both(capsys):
    result = dsv_cpu.measure(rounds=1, tokens=256)
    assert [row["sparsity"] for row in result["rows"]] == [0.0, *dsv.SPARSITIES]
    assert all(row["dense"] > 0 and row["reference"] > 0 for row in result["rows"])
    dsv_cpu.show(result)
    assert "ratio" in capsys.readouterr().out
