"""The example of kernels/stepstack_kernels/dsv/README.md in short."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import pytest
import torch

from examples.dsv_wan import SPARSE, train, videos
from stepstack.config import ROOT
from stepstack.models.video.dsv.config import Fixed


def test_the_page_shows_a_program_that_runs(capsys):
    page = (ROOT / "kernels" / "stepstack_kernels" / "dsv" / "README.md").read_text()
    [program] = re.findall(r"```python\n(import torch\n.*?)```", page, re.DOTALL)
    short = program.replace("range(400)", "range(2)").replace("256", "8")
    assert short.count("range(2)") == 1
    exec(compile(short, "README.md", "exec"), {})
    dense, sparse = capsys.readouterr().out.splitlines()
    assert dense.split()[:2] == ["dense", sparse.split()[1]]  # no block is sparse yet: the same to the last bit
    assert "'dsv/recall'" in sparse


def test_a_blob_moves_as_its_text_says():
    latents, text = videos(8, torch.Generator().manual_seed(0))
    assert latents.shape == (8, 4, 4, 16, 16)
    for video, words in zip(latents, text, strict=True):
        colour, way = (int(word.argmax()) for word in words)
        assert int(video.amax((1, 2, 3)).argmax()) == colour
        places = [divmod(int(frame.argmax()), 16) for frame in video[colour]]
        steps = [((b[0] - a[0]) % 16, (b[1] - a[1]) % 16) for a, b in itertools.pairwise(places)]
        assert steps == [[(0, 2), (0, 14), (2, 0), (14, 0)][way - 4]] * 3


def test_dsv_trains_as_dense_attention_does():
    dense = train(1, 16, None)
    waiting = train(1, 16, replace(SPARSE, dispatch=Fixed(sparsity=1.0), switch=1e9))
    assert waiting["held_out"] == dense["held_out"]  # no block is sparse: the same run to the last bit
    sparse = train(1, 16, replace(SPARSE, switch=1e9, warmup=6))
    assert sparse["dsv"]["dense_steps"] == 5  # the sixth step's figures are those after it
    assert sparse["dsv"]["sparse"] == 1
    assert 0.05 < sparse["dsv"]["sparsity"] < 0.9
    assert sparse["dsv"]["density"] == pytest.approx(1 - sparse["dsv"]["sparsity"], abs=0.05)
    assert sparse["dsv"]["recall"] > 0.9
    assert sparse["held_out"] != dense["held_out"]
    assert sparse["held_out"] == pytest.approx(dense["held_out"], rel=0.02)
