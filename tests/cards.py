"""What every model card must hold, as huggingface_hub reads it."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import ModelCard

from recipes.protocol import load_config
from stepstack.config import to_dict
from stepstack.harness.training.outcome import results
from tests import hub


def check_card(run: Path, model: str = "model") -> ModelCard:
    """The card of a run's model folder, held against the run: its figures are those of the evaluation, the config
    beside it is the run's, the hub takes it."""
    folder = run / model
    text = (folder / "README.md").read_text()
    card = ModelCard(text)
    assert hub.refused(text) == ""
    record = json.loads((run / "config.json").read_text())
    name = record["config"]["name"]
    assert card.data.model_name == name or not card.data.eval_results
    after = results(run / "evals" / "after")
    want = {
        (task, metric["name"]): (metric["value"], {k: metric[k] for k in ("stderr", "n") if metric[k] is not None})
        for task, (_, result) in after.items()
        for metric in result["metrics"]
        if metric["value"] is not None
    }
    given = card.data.eval_results or []
    read = {(r.dataset_type, r.metric_type): (r.metric_value, r.metric_args) for r in given}
    assert read == want, (read, want)
    for task, _ in want:
        assert f"| {task} | " in text
    again = load_config(str(folder / "training.yaml"), [f"name={name}", f"dir={record['config']['dir']}"])
    assert to_dict(again) == record["config"]
    assert record["config"]["dir"] not in text  # no path of this machine
    return card
