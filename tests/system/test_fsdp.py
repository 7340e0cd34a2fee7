"""FSDP2, run: sharded processes take the steps of one, resume to the bit, and leave models that load."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from stepstack.core import checkpoint as checkpoints
from stepstack.core import state, weights
from stepstack.core.run import Run
from stepstack.report import jsonl
from tests.system import fsdp, hooks
from tests.system.hooks import recorder
from tests.system.processes import (
    GAE,
    SMOOTH,
    checkpoint,
    differences,
    distance,
    numbers,
    ok,
    role_state,
    rows,
    sampled,
    samples,
    train,
    trajectory,
)

ROUNDING = 2.0**-24  # of a float32 between a half and 1, 6e-8
APART = 1e-5  # of weights below 1, in float32, with AdamW
GRPO = ("advantage={type: grpo}", "actor_updates=2", "kl={weight: 0.05, place: loss}", "entropy_weight=0.01")
CHECKPOINTED = ("actor.gradient_checkpointing=true", "critic.gradient_checkpointing=true")
LORA = ("actor.lora={r: 4}", "critic.lora={r: 4}", *CHECKPOINTED)
MUON = ("actor.optim={type: muon, lr: 0.003, adamw_lr: 3e-4}",)
KILLED = -signal.SIGKILL


def sharded(run: Path, count: int, *words: str, extra: tuple = ()) -> None:
    for ended in fsdp.train(run, count, *words, hooks=(recorder(run), *extra)):
        ok(ended)


def alike(one: Path, two: Path, tolerance: float = 1e-4) -> None:
    """Both sampled the same and measured the same, evaluations included."""
    assert sampled(two) == sampled(one)
    assert len(sampled(one)) > 40
    for a, b in zip(numbers(one), numbers(two), strict=True):
        assert b == pytest.approx(a, rel=tolerance, abs=tolerance)
    for when in ("before", "after"):
        assert differences(samples(two, when), samples(one, when)) == []


def every_rank_learned(run: Path, step: int, count: int) -> None:
    """Each process's rows of each trained matrix have had a gradient: none is forgotten on a rank above 0."""
    for role in checkpoint(run, step)["state"]["trainables"]:
        state = checkpoint(run, step)[role]
        moments = {}
        for optimizer in state["optimizers"].values():
            for name, kept in optimizer["state"].items():
                moments[name] = kept["exp_avg"] if "exp_avg" in kept else kept["momentum_buffer"]
        assert moments.keys() <= state["weights"].keys()
        for name, moment in moments.items():
            for part in moment.chunk(count):
                assert part.abs().max() > 0, f"{role}: {name}"


CASES = {
    "ppo": (*SMOOTH, *GAE),
    "ppo, packed": (*SMOOTH, *GAE, "layout.pack=true"),
    "grpo with a reference, prompts shared": (*SMOOTH, *GRPO, "layout.share_prompts=true"),
    "grpo": (*SMOOTH, *GRPO[:2]),  # rows without signal leave the update, of one process more than of the other
    "lora": (*SMOOTH, *GAE, *LORA),
    "muon": ("critic.optim.eps=1e-3", *GAE, *MUON),  # Muon's steps are smooth; its AdamW has no eps of its own
}


@pytest.mark.parametrize("words", CASES.values(), ids=CASES)
def test_two_processes_give_the_trajectory_of_one(new_run, words):
    one, two = new_run("one"), new_run("two")
    ok(train(one, *words, hooks=[recorder(one)]))
    sharded(two, 2, *words)
    alike(one, two)
    assert distance(one, two, 4) < APART
    every_rank_learned(two, 4, 2)
    # The sampler has the weights of the trainer.
    assert max(row.get("actor/mismatch_max", 0.0) for row in rows(two)) < 1e-4


def test_from_scratch_with_muon_and_tied_embeddings(whole, tmp_path):
    """The SFT stage, whose optimizer is Muon, and whose exported base ties its head. Its rows have a prompt each, and
    share none, though the rollouts of the next stage do."""
    run = tmp_path / "q"
    sharded(run, 2, "layout.share_prompts=true")
    losses = [[row["loss"] for row in rows(r / "base")] for r in (whole, run)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    bases = [dict(AutoModelForCausalLM.from_pretrained(r / "base" / "model").named_parameters()) for r in (whole, run)]
    assert bases[0].keys() == bases[1].keys()
    assert max((bases[0][name] - bases[1][name]).abs().max().item() for name in bases[0]) < 1e-3


def test_bf16_rounds_only_what_it_must(new_run):
    """Log-probabilities of the same rollouts are as near as those of one process, and are not rounded themselves;
    gradients are summed in float32, over micro-batches and over processes."""
    one, two = new_run("one"), new_run("two")
    words = ("precision=bf16", "steps=1", "actor_updates=1", "critic_updates=1", "layout.max_tokens=160")
    ok(train(one, *words, hooks=[recorder(one)]))
    rounding = two.parent / "rounding.jsonl"
    sharded(two, 2, *words, extra=((hooks.record_rounding, rounding),))
    a, b = rows(one)[1], rows(two)[1]
    assert b["actor/mismatch"] < 1.5 * a["actor/mismatch"]
    for role in ("actor", "critic"):
        assert b[f"{role}/grad_norm"] == pytest.approx(a[f"{role}/grad_norm"], rel=0.1)
    found = jsonl.read(rounding)
    assert {row["what"] for row in found} == {"logprobs", "gradients of actor", "gradients of critic"}
    assert min(row["unrounded"] for row in found) > 0.5
    kept = checkpoint(two, 1)["actor"]["weights"]
    assert {value.dtype for value in kept.values()} == {torch.float32}


@pytest.mark.parametrize("lora", ["null", "{r: 4}"])
def test_weights_that_are_read_in_bfloat16_learn_in_float32(whole, new_run, lora):
    """As orz-32b reads them: shards of trained weights are float32, whatever the file has."""
    run = new_run()
    model = f"model={{type: pretrained, path: {whole / 'base' / 'model'}, dtype: bfloat16}}"
    sums = "data={type: chains, terms: [2, 3], largest_term: 4, largest_sum: 4, train: 40, select: 6, test: 8}"
    sharded(run, 2, model, sums, f"actor.lora={lora}", f"critic.lora={lora}", "precision=bf16", "steps=1")
    kept = checkpoint(run, 1)["actor"]["weights"]
    trained = [value for name, value in kept.items() if lora == "null" or ".lora_" in name]
    assert trained
    assert {value.dtype for value in trained} == {torch.float32}


@pytest.fixture(scope="module")
def unbroken(whole, tmp_path_factory) -> Path:
    """Two processes, four steps, nobody disturbed them."""
    run = fsdp.with_base(whole, tmp_path_factory.mktemp("unbroken") / "q")
    sharded(run, 2, *GAE, *MUON)
    return run


def test_killed_and_resumed_is_bit_equal(new_run, unbroken):
    run = new_run()
    killed = fsdp.train(run, 2, *GAE, *MUON, hooks=(recorder(run), (hooks.signal_in_step, "actor", 3, signal.SIGKILL)))
    assert [ended.code for ended in killed] == [KILLED, KILLED]
    sharded(run, 2, *GAE, *MUON)
    assert differences(trajectory(run, 4), trajectory(unbroken, 4)) == []


def test_the_checkpoint_and_the_export_are_one_model(unbroken):
    found = weights.read(unbroken / "checkpoints" / "step-00000004", "actor")
    exported = dict(AutoModelForCausalLM.from_pretrained(unbroken / "model").named_parameters())
    assert found.keys() == exported.keys()
    assert all(torch.equal(found[name], exported[name]) for name in exported)


def write_again(folder: Path) -> None:
    """Hook of a training process: what it has read from a checkpoint is written once more, before the next step."""
    read = Run._load

    def loaded(self, step, of):
        read(self, step, of)
        for role, trainable in self.trainables.items():
            state.save(trainable, folder / role)

    Run._load = loaded


def roundings(a: Path, b: Path, step: int) -> float:
    """Largest difference of a weight in units of what float32 rounds by below 1: one of 1.16 is rounded by two."""
    one, two = (checkpoint(run, step) for run in (a, b))
    pairs = [(w, two[role]["weights"][k]) for role in ("actor", "critic") for k, w in one[role]["weights"].items()]
    apart = [(x - y).abs() / 2.0 ** torch.frexp(x).exponent.clamp(min=0) for x, y in pairs]
    return max(difference.max().item() for difference in apart) / ROUNDING


@pytest.mark.parametrize("count", [1, 3])
def test_another_number_of_processes_goes_on(new_run, tmp_path, count):
    """Two processes, then one or three, then two again. What two wrote is read to the bit, and the first step from
    there lies a rounding away from that of two."""
    two, mixed = new_run("two"), new_run("mixed")
    words = (*SMOOTH, *GAE, "save={every: 1, keep: 3}", "steps=3")
    sharded(two, 2, *words)
    for processes, stop in ((2, "1"), (count, "2"), (2, "3")):
        again = ((write_again, tmp_path / "again"),) if processes != 2 else ()
        ended = fsdp.train(mixed, processes, *words, "--stop-after", stop, hooks=(recorder(mixed), *again))
        assert [e.code for e in ended] == [0] * processes
        if processes != 2:
            assert f"{count} processes go on where 2 stopped" in ended[0].err
    written = checkpoint(mixed, 1)
    for role in written["state"]["trainables"]:
        assert differences(role_state(tmp_path / "again" / role), written[role]) == []
    assert roundings(two, mixed, 1) == 0
    after = roundings(two, mixed, 2)
    alike(two, mixed)
    apart = distance(two, mixed, 3)
    print(f"after a step by {count}: {after} roundings of a weight; after 2, {count}, 2 processes: {apart:.2e}")
    assert after <= 1
    assert apart < 2e-7  # a rounding of a weight above 1 is 1.2e-7


def test_a_checkpoint_of_whole_models_is_refused(new_run):
    run = new_run()
    ok(train(run, "--stop-after", "2"))
    for ended in fsdp.train(run, 2):
        assert ended.code == 2
        assert (
            "was written by launch.file=cpu, which keeps models whole; launch.file=fsdp2 keeps them sharded"
            in ended.err
        )
    assert checkpoints.problem(run / "checkpoints" / "step-00000002") is None


def test_any_decoder_starts_without_weights(new_run):
    """Processes above 0 build their sampler on a model without memory, the first load fills it."""
    one, two = new_run("one"), new_run("two")
    words = (*SMOOTH, *GAE, "rollout.generator.decoder=module", "steps=2", "eval_every=0")
    ok(train(one, *words, hooks=[recorder(one)]))
    sharded(two, 2, *words)
    assert sampled(two) == sampled(one)
    assert max(row.get("actor/mismatch_max", 0.0) for row in rows(two)) < 1e-4
