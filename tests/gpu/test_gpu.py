"""On a GPU: orz-tiny through each launch file that one GPU can serve, and the sampler's arithmetic. `make test-gpu`."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stepstack.batching.collate import collate, collate_shared
from stepstack.batching.rows import Row
from stepstack.batching.shared import Siblings, siblings
from stepstack.config import ROOT
from stepstack.generation.config import HfConfig
from stepstack.generation.hf import HfGenerator
from stepstack.generation.types import Prompt, Sampling
from stepstack.models.lm import tiny
from stepstack.models.lm.policy import Policy
from stepstack.records import Problem
from tests import tools

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

SMALL = ("steps=4", "model.steps=60", "eval_every=2", "evals=[test]", "data.test=64", "data.select=32", "save.every=2")


def launch(folder: Path, *overrides: str) -> list[dict]:
    line = [sys.executable, "-m", "stepstack", "launch", "orz-tiny", f"dir={folder}", "name=x", *SMALL, *overrides]
    subprocess.run(line, cwd=ROOT, check=True)
    return [json.loads(text) for text in (folder / "x" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("file", ["gpu", "fsdp2"])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_run_trains_and_resumes(tmp_path, file, precision):
    where = (f"launch.file={file}", f"precision={precision}")
    rows = launch(tmp_path, *where, "save.keep=5")
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert all(math.isfinite(row["actor/loss"]) and row["actor/grad_norm"] > 0 for row in rows[1:])
    # bfloat16 in the trainer, float32 in the sampler: a hundredth of a nat a token, not more.
    assert all(row["actor/mismatch"] < (0.05 if precision == "bf16" else 1e-4) for row in rows[1:])
    for late in (tmp_path / "x" / "checkpoints").glob("step-*4"):
        (late / "complete.json").unlink()  # as if killed while writing it
    assert launch(tmp_path, *where)[-1]["step"] == 4


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("file", ["ddp", "fsdp2"])
def test_two_gpus_give_the_trajectory_of_one(tmp_path, file):
    one = launch(tmp_path / "one", "launch.file=gpu")
    two = launch(tmp_path / "two", f"launch.file={file}", "launch.processes_per_node=2")
    for a, b in zip(one, two, strict=True):
        assert b.get("reward", 0.0) == pytest.approx(a.get("reward", 0.0), abs=0.05)


@pytest.mark.parametrize("decoder", ["fused", "module"])
def test_sampler_and_trainer_agree(decoder):
    tokenizer = tiny.tokenizer()
    lm = tiny.qwen2(len(tokenizer), hidden=96, layers=3, intermediate=256, seed=0).cuda().eval()
    generator = HfGenerator(lm, tokenizer, HfConfig(decoder=decoder))
    prompts = [Prompt(Problem(i, "", "0"), tuple(range(5, 9 + i % 3))) for i in range(8)]
    rollouts = [r for g in generator.generate(prompts, Sampling(n=4, max_tokens=32)) for r in g.rollouts]
    micro = collate([Row.of(r, 0.0, i) for i, r in enumerate(rollouts)], pack=False, device="cuda")
    with torch.no_grad():
        logp, _ = Policy(lm)(micro.input_ids, micro.position_ids, micro.select, micro.labels)
    assert (logp - micro.field("sampler")).abs().max() < 1e-3


@pytest.mark.parametrize("pack", [False, True])
def test_samples_that_share_their_prompt_have_the_gradient_of_rows_of_their_own(pack):
    """On a GPU the mask takes another kernel of scaled_dot_product_attention than on a CPU."""
    rows = tools.rows([(40, 9), (40, 30), (40, 17), (25, 8), (25, 33)], n=3)
    found = []
    for sequences in ([Siblings((row,)) for row in rows], siblings(rows, 10_000)):
        policy = Policy(tools.qwen2()).cuda()
        logp, _ = policy(**collate_shared(sequences, pack, "cuda").inputs())
        logp.sum().backward()
        found.append((logp, torch.cat([p.grad.flatten() for p in policy.parameters()])))
    (own, gradient), (shared, other) = found
    torch.testing.assert_close(shared, own, atol=1e-4, rtol=0)
    torch.testing.assert_close(other, gradient, rtol=1e-3, atol=1e-3 * gradient.abs().max().item())
