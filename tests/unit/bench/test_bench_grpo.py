"""The bench of updates: both contestants see the same tokens, shared prompts change no weight, and each has a time."""

from __future__ import annotations

import torch

from evals.bench import grpo
from stepstack.core.run import Run
from stepstack.rl import update


def test_trl_is_handed_our_rollouts(tmp_path, monkeypatch):
    from trl import GRPOTrainer

    seen, inner = [], GRPOTrainer._compute_loss

    def spied(self, model, inputs):
        seen.append(inputs)
        return inner(self, model, inputs)

    monkeypatch.setattr(GRPOTrainer, "_compute_loss", spied)
    rows = grpo.rollouts(5, seed=1)
    assert grpo.theirs([rows], str(tmp_path)) > 0
    [inputs] = seen
    found = {}
    for kind in ("prompt", "completion"):
        masks = inputs[f"{kind}_mask"].bool()
        found[kind] = [tuple(ids[mask].tolist()) for ids, mask in zip(inputs[f"{kind}_ids"], masks, strict=True)]
    assert sorted(zip(*found.values(), strict=True)) == sorted((row.prompt_ids, row.ids) for row in rows)
    assert inputs["advantages"].abs().min() > 0.5  # all learn


def test_sharing_changes_the_time_and_no_weight(tmp_path, monkeypatch):
    after, work = [], []
    trained = Run.trainable

    def kept(run, role, *args):
        after.append(trained(run, role, *args))
        return after[-1]

    loss_of = update.policy_loss
    monkeypatch.setattr(Run, "trainable", kept)
    monkeypatch.setattr(
        update, "policy_loss", lambda cfg: lambda module, micro: work.append(micro.work) or loss_of(cfg)(module, micro)
    )
    data = [grpo.rollouts(40, seed=1)]
    assert all(grpo.ours(data, tmp_path / f"share-{share}", share) > 0 for share in (False, True))
    own, shared = (torch.cat([p.detach().flatten() for p in actor.parameters]) for actor in after)
    start = torch.cat([p.detach().flatten() for p in grpo.model().parameters()])
    assert (own - start).abs().max() > 0.9 * grpo.LR
    assert (own - shared).abs().mean() < 0.01 * (own - start).abs().mean()
    responses = sum(len(row.ids) for row in data[0])
    assert sum(work) == 64 * 40 + responses + 8 * 40 + responses


def test_every_length_is_run_for_all(monkeypatch):
    monkeypatch.setattr(grpo, "LENGTHS", (3, 9))
    result = grpo.measure(rounds=1)
    assert [(row["prompt"], row["seed"]) for row in result["rows"]] == [(3, 1), (9, 1)]
    assert all(row[who] > 0 for row in result["rows"] for who in ("own", "shared", "trl"))
    grpo.show(result)
