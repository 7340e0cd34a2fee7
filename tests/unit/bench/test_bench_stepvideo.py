"""`bench stepvideo` before a GPU: the CPU's part takes the same path."""

from __future__ import annotations

import math

import pytest
import torch

from evals.bench import stepvideo, stepvideo_cpu


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_without_a_gpu_it_says_so():
    with pytest.raises(ValueError, match="bench stepvideo needs a CUDA device and there is none"):
        stepvideo.measure()


def test_rounds_are_whole_turns():
    with pytest.raises(ValueError, match="rounds=6 must be a multiple of 4"):
        stepvideo_cpu.measure(rounds=6)


def test_figures_are_means_and_their_errors():
    result = stepvideo.figures({"dense": [5.0, 7.0], "dsv": [2.0, 2.0]})
    assert (result["dense_s"], result["dense_stderr"], result["dsv_stderr"]) == (6.0, 1.0, 0.0)
    assert (result["ratio"], result["ratio_stderr"]) == (3.0, 0.5)


def test_the_lengths_are_those_of_the_goal():
    assert [stepvideo.tokens(grid) for grid in stepvideo.GRIDS] == [2**15, 2**16, 2**17]


def test_the_cpus_part_trains_densely_and_sparsely(capsys, monkeypatch):
    observed = []
    inner = stepvideo.step

    def watched(model, optimizer, micro, dsv):
        before = [p.detach().clone() for p in model.parameters() if p.requires_grad]
        spent = inner(model, optimizer, micro, dsv)
        moved = any(
            not torch.equal(a, p)
            for a, p in zip(before, (p for p in model.parameters() if p.requires_grad), strict=True)
        )
        observed.append((dsv is not None and all(dsv.sparse()), type(model.blocks[0].attn1.processor).__name__, moved))
        return spent

    monkeypatch.setattr(stepvideo, "step", watched)
    result = stepvideo_cpu.measure(rounds=4)
    assert observed == [(False, "Dense", True), (True, "VideoDsv", True)] * 8
    [row] = result["rows"]
    assert (row["tokens"], row["n"], row["sparsity"]) == (256, 4, 0.75)
    assert row["ratio"] == pytest.approx(row["dense_s"] / row["dsv_s"])
    assert all(math.isfinite(row[name]) for name in ("dense_stderr", "dsv_stderr", "ratio_stderr"))
    stepvideo.show(result)
    assert "goal at 131072 tokens: 3.0" in capsys.readouterr().out
