"""The tuning bench: both contestants see the same tokens, and each contest gives a speed for both."""

from __future__ import annotations

from datasets import Dataset

from evals.bench import tune


def test_both_see_the_same_tokens(tmp_path):
    from trl import DPOConfig, DPOTrainer

    data = tune.examples(4, 0, seed=1)
    rows = [{"prompt": tune.prompt_of(e), "chosen": f" {e.chosen}", "rejected": f" {e.rejected}"} for e in data]
    trainer = DPOTrainer(
        model=tune.model(0),
        ref_model=tune.model(0),
        args=DPOConfig(**tune.settings(str(tmp_path))),
        train_dataset=Dataset.from_list(rows),
        processing_class=tune.tokenizer(),
    )
    _, _, as_rows, _ = tune.prepared(data, tmp_path / "ours")
    for example, theirs in zip(data, trainer.train_dataset, strict=True):
        chosen, rejected = as_rows(example)
        assert list(chosen.prompt_ids) == theirs["prompt_ids"]
        assert (list(chosen.ids), list(rejected.ids)) == (theirs["chosen_ids"], theirs["rejected_ids"])


def test_every_contest_is_run_for_both(monkeypatch):
    monkeypatch.setattr(tune, "BATCH", 2)
    result = tune.measure(rounds=1, steps=1)
    assert {row["contest"] for row in result["rows"]} == set(tune.GOALS)
    assert all(row["ours"] > 0 and row["trl"] > 0 for row in result["rows"])
    tune.show(result)
