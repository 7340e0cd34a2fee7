"""Model cards of published start models and data: what is known is said, and what is not is not guessed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from recipes.protocol import load_config
from stepstack.core.folder import claim
from stepstack.harness.training.card import write_cards
from tests import hub

RESULT = {
    "version": 2,
    "metrics": [
        {"name": "greedy", "value": 0.5, "stderr": 0.1, "n": 25, "higher_is_better": True},
        {"name": "agrees | yields", "value": None, "stderr": None, "n": 0, "higher_is_better": False},
    ],
}


def card_of(tmp_path: Path, *overrides: str) -> ModelCard:
    cfg = load_config("chat-sft-0.5b", [f"dir={tmp_path}", "name=it's mine", *overrides])
    claim(cfg.folder, cfg, inner=True)
    (cfg.folder / "model").mkdir()
    (cfg.folder / "model" / "config.json").write_text(json.dumps({"architectures": ["Qwen2ForCausalLM"]}))
    write_cards(cfg.folder, cfg, {"before": {}, "after": {"held out": RESULT}})
    text = (cfg.folder / "model" / "README.md").read_text()
    assert hub.refused(text) == ""
    return ModelCard(text)


def test_a_model_and_data_of_the_hub_are_named_and_an_unknown_licence_is_said_to_be(tmp_path):
    card = card_of(tmp_path, "data.sft=['hf:trl-lib/Capybara@train']", "data.dpo=['hf:me/pairs']")
    assert card.data.base_model == "Qwen/Qwen2.5-0.5B"
    assert card.data.license == "unknown"
    assert "Its licence is unknown: it has no card here" in card.text
    assert card.data.datasets == ["trl-lib/Capybara", "me/pairs"]
    assert "drawn by the run itself" not in card.text
    [result] = card.data.eval_results
    assert (result.metric_value, result.metric_args) == (0.5, {"stderr": 0.1, "n": 25})
    assert "| held out | greedy |  | 0.5000 ± 0.1000 | 25 |" in card.text
    assert "| held out | agrees \\| yields (less is better) |  | - | 0 |" in card.text
    assert """stepstack launch training.yaml 'name=it'"'"'s mine'""" in card.text


@pytest.mark.parametrize(
    "licence", [{"license": "mit"}, {"license": "other", "license_name": "tongyi", "license_link": "LICENSE"}]
)
def test_the_licence_of_a_folder_is_that_of_its_card(tmp_path, licence):
    start, rows = tmp_path / "start", tmp_path / "rows.jsonl"
    start.mkdir()
    rows.write_text("{}\n")
    head = "\n".join(f"{key}: {value}" for key, value in licence.items())
    (start / "README.md").write_text(f"---\n{head}\n---\n# A model\n")
    (start / "config.json").write_text("{}")
    card = card_of(tmp_path, f"model.path={start}", f"data.sft=['{rows}']")
    assert {key: card.data.get(key) for key in licence} == licence
    assert card.data.base_model is None  # a folder is no name of the hub
    assert card.data.datasets is None
    assert f"`{start.parent.name}/start`" in card.text
    assert str(tmp_path) not in card.text
    files = json.loads((tmp_path / "it's mine" / "config.json").read_text())["files"]
    assert f"rows.jsonl` | `{files[str(rows)]}` |" in card.text
