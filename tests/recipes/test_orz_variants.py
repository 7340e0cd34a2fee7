"""Every choice of the loop runs through the recipe, gives finite metrics, moves the weights, and leaves its mark."""

from __future__ import annotations

import json
import math
import re
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from transformers import AutoModelForCausalLM

from recipes.orz import recipe
from recipes.protocol import load_config
from stepstack.config import ROOT, ConfigError
from stepstack.core.run import Run
from stepstack.models.lm.policy import Policy
from stepstack.records import Score
from stepstack.report import jsonl
from stepstack.rl.roles import roles
from tests.system.processes import role_state

MINI = str(ROOT / "tests" / "system" / "mini.yaml")
SMALL = ("steps=1", "eval_every=0", "model.steps=2", "model.batch=4", "data.test=2", "data.select=2", "save.every=1")
GRPO = "advantage={type: grpo}"


def parity(rollouts) -> list[Score]:
    """A reward that varies within groups whatever the model writes."""
    return [Score(float(len(r.ids) % 2), {"correct": 0.0}) for r in rollouts]


def run_recipe(folder: Path, *words: str) -> list[dict[str, float]]:
    for state in (AcceleratorState, GradientState, PartialState):  # mixed precision is fixed for a process otherwise
        state._reset_state()
    recipe.train(Run(load_config(MINI, (f"dir={folder.parent}", f"name={folder.name}", *SMALL, *words))))
    return jsonl.read(folder / "metrics.jsonl")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(recipe, "reward_of", lambda cfg: parity)
    monkeypatch.setattr(recipe, "report_outcome", lambda run: None)  # tests/recipes/test_orz_tiny.py looks at it


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "reward_of", lambda cfg: parity)
        folder = tmp_path_factory.mktemp("base") / "q"
        run_recipe(folder)
    return folder / "base" / "model"


@pytest.fixture
def go(base, tmp_path):
    def start(*words: str) -> tuple[Path, dict[str, float]]:
        folder = tmp_path / "q"
        shutil.copytree(base, folder / "base" / "model")
        first, *rows = run_recipe(folder, *words)
        assert first["step"] == 0
        for row in rows:
            assert all(math.isfinite(value) for value in row.values())
            assert row["actor/skipped"] == 0
            assert row["actor/grad_norm"] > 0
        assert weights(folder / "model").keys() == weights(base).keys()
        assert any((weights(folder / "model")[k] != v).any() for k, v in weights(base).items())
        return folder, rows[-1]

    return start


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())


@pytest.mark.parametrize(
    "words",
    [
        (GRPO,),
        ("advantage={type: grpo, scale: none}", "policy_loss.aggregate=seq-mean-token-sum-norm"),  # Dr. GRPO
        ("advantage={type: grpo, scale: population, whiten: true}",),
        ("advantage={type: rloo}",),
        ("advantage={type: reinforce_plus_plus}", "rollout.sampling.n=1", "rollout.prompts=8"),
        ("advantage={type: reinforce_plus_plus, gamma: 0.99}", "kl={weight: 0.1, place: reward}"),
        (GRPO, "policy_loss.old_from_sampler=1e-3"),
        ("advantage={type: remax}", "rollout.sampling.n=2"),
        (GRPO, "policy_loss={ratio: sequence, clip_low: 3e-4, clip_high: 4e-4, aggregate: seq-mean-token-mean}"),
        (GRPO, "policy_loss.ratio=sequence-token"),
        (GRPO, "policy_loss={surrogate: cispo, clip_low: 1, clip_high: 4}"),
        ("advantage={type: gae, gamma: 0.99, lam: 0.95, bf16: true}",),
        ("policy_loss.dual_clip=3.0",),
        ("policy_loss.clip_high=0.28",),
        ("policy_loss.is_cap=2.0", "actor_updates=1"),
        ("policy_loss.aggregate=token-mean",),
        ("policy_loss.aggregate=seq-mean-token-mean", "value_loss.aggregate=seq-mean-token-mean"),
        ("policy_loss.aggregate=seq-mean-token-sum",),
        ("policy_loss.aggregate=pack-mean", "value_loss.aggregate=pack-mean", "layout.pack=true"),
        ("layout.pack=true",),
        ("layout.share_prompts=true", "actor.gradient_checkpointing=true"),
        ("layout={pack: true, max_tokens: 256, orz_parity: true}",),
        ("value_loss.clip=null",),
        ("entropy_weight=0.01",),
        ("actor.gradient_checkpointing=true", "critic.gradient_checkpointing=true"),
        ("actor.optim={type: muon}", "critic.optim={type: muon}"),
        ("actor.optim.schedule={kind: cosine, warmup: 1}", "critic.optim.schedule={kind: linear}"),
        ("rollout.sampling.temperature=0.7",),
        ("rollout.generator={type: hf, decoder: module}",),
    ],
    ids=lambda words: " ".join(words),
)
def test_a_step(go, words):
    _, row = go(*words)
    has_critic = not any(kind in words[0] for kind in ("grpo", "rloo", "reinforce_plus_plus", "remax"))
    assert ("reward_greedy" in row) == ("remax" in words[0])
    assert ("critic/loss" in row) == has_critic
    assert ("critic/explained_variance" in row) == has_critic


def test_a_group_needs_two():
    with pytest.raises(ConfigError, match="a group-relative advantage needs"):
        load_config(MINI, (GRPO, "rollout.sampling.n=1"))


@pytest.mark.parametrize(
    ("words", "made"),
    [
        ((), 1),
        (("kl.weight=0.1", "kl.place=loss"), 2),
        (("kl.weight=0.1", "kl.place=reward", "kl.estimator=k1"), 2),
        ((GRPO, "kl.weight=0.1"), 2),
    ],
    ids=["none", "loss", "reward", "grpo"],
)
def test_the_reference_exists_only_with_a_weight(go, monkeypatch, words, made):
    built, frozen = [], []

    class Counted(Policy):
        def __init__(self, lm):
            built.append(self)
            super().__init__(lm)

    place = Run.frozen
    monkeypatch.setattr(recipe, "roles", partial(roles, policy=Counted))
    monkeypatch.setattr(Run, "frozen", lambda self, module: frozen.append(module) or place(self, module))
    folder, row = go("steps=2", *words)
    assert (len(built), len(frozen)) == (made, made - 1)
    assert ("actor/ref_kl" in row) == (made == 2)
    saved = list((folder / "checkpoints" / "step-00000002").glob("*/.metadata"))
    assert len(saved) == 1 + (GRPO not in words)
    if made == 2:
        assert not any(p.requires_grad for p in frozen[0].parameters())
        assert row["actor/ref_kl"] != 0  # in the second step the actor has left the reference


@pytest.mark.parametrize("cut", ["temperature=0", "top_k=20", "top_p=0.9"])
def test_rollouts_of_a_cut_distribution_are_refused(cut):
    with pytest.raises(ConfigError, match="rollouts are samples of the policy itself"):
        load_config(MINI, (f"rollout.sampling.{cut}",))


def test_a_tool_in_the_loop(tmp_path):
    """The base model here knows which letters there are and nothing else, so that one letter often calls. What was
    sampled is what is learned: the trainer's log-probabilities of it are the sampler's, across the tool's tokens."""
    tool = "tool={type: calculator, open: '+', close: '</think>', result: '{result};', calls: 3}"
    *_, row = run_recipe(tmp_path / "q", tool, "model.steps=8")
    assert row["tool/calls"] > 0.05
    assert row["tool/failed"] > 0
    assert row["actor/mismatch_max"] < 1e-4


def test_kl_in_the_reward_of_a_critic_less_advantage_is_refused():
    """The penalty is taken token by token, which a group's advantage has no place for."""
    with pytest.raises(ConfigError, match="kl"):
        load_config(MINI, (GRPO, "kl.weight=0.1", "kl.place=reward"))


def test_lora(go, base):
    """Only adapters learn and are optimized; the exported folder holds them merged."""
    folder, _ = go("actor.lora={r: 4, alpha: 8}", "actor.optim.lr=1e-2", "steps=2")
    trained, before = weights(folder / "model"), weights(base)
    moved = {name for name in before if (trained[name] != before[name]).any()}
    assert moved == {name for name in before if name.endswith("_proj.weight")}
    state = role_state(folder / "checkpoints" / "step-00000002" / "actor")
    assert len(state["optimizers"]["0"]["state"]) == 2 * len(moved)


def test_bf16(go):
    """Master weights and checkpoints stay fp32; the sampler's fp32 then differs from the trainer, and is logged."""
    folder, row = go("precision=bf16")
    assert {p.dtype for p in weights(folder / "model").values()} == {torch.float32}
    assert 1e-5 < row["actor/mismatch_max"] < 0.5


def test_fp32_sampler_and_trainer_agree(go):
    _, row = go()
    assert row["actor/mismatch_max"] < 1e-5


def test_first_of_two_updates_is_on_policy(go):
    """With one actor update the ratio is 1 to the bit, and nothing is clipped."""
    _, row = go("actor_updates=1")
    assert row["actor/ratio_max"] == 1.0
    assert row["actor/clip_fraction"] == 0.0
    assert row["actor/kl"] == 0.0


def test_the_loop_says_what_it_did(go):
    """metrics.jsonl has throughput, utilisation, memory and the time of each phase, which add up to the step's."""
    folder, row = go("critic_updates=4")
    phases = {name: seconds for name, seconds in row.items() if name.startswith("time/")}
    assert {"time/rollout", "time/reward", "time/annotate", "time/critic", "time/actor", "time/sync"} <= phases.keys()
    total = phases.pop("time/step")
    assert sum(phases.values()) == pytest.approx(total, rel=1e-6)
    assert row["tokens_per_s"] == pytest.approx(row["tokens"] / total)
    assert 0 < row["mfu"] < 1
    assert row["memory_gib"] > 0.1
    assert (row["actor/updates"], row["critic/updates"]) == (2, 4)
    assert json.loads((folder / "config.json").read_text())["provenance"]


def test_a_second_run_says_the_time_left_of_all_stages(tmp_path, capsys):
    """Another seed and another length do the same work; the first run in a folder can only name what comes."""
    said = []
    for name, *words in (("first",), ("second", "seed=7", "steps=2")):
        run_recipe(tmp_path / name, *words)
        said.append(capsys.readouterr().err)
    assert re.search(r"^first SFT 2/2 .* s, 0 s left, then PPO$", said[0], re.MULTILINE)
    assert re.search(r"^second SFT 2/2 .* s, 0 s left, about \d+ s with PPO$", said[1], re.MULTILINE)
    for text in said:
        assert re.search(r"PPO \d/\d .* s, 0 s left$", text, re.MULTILINE)  # nothing comes after it
