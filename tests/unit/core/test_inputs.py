"""A run knows what it read, and goes on with nothing else: data prepared anew, another model under the same path."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from recipes.protocol import load_config
from stepstack import config
from stepstack.cli.main import main
from stepstack.config import CONFIGS, ConfigError, RunConfig
from stepstack.core.folder import claim
from stepstack.core.inputs import digest_of, digests, refuse_others
from stepstack.models.lm.config import Pretrained
from tests import tools


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(RunConfig):
    model: Pretrained


@pytest.fixture
def model(tmp_path):
    tools.qwen2().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def run_of(tmp_path, path):
    return Config(recipe="x", name="run", dir=str(tmp_path), model=Pretrained(path=str(path)))


def test_another_model_under_the_same_path_is_refused(tmp_path, model):
    cfg = run_of(tmp_path, model)
    claim(cfg.folder, cfg, inner=False)
    claim(cfg.folder, cfg, inner=False)
    refuse_others(cfg.folder, cfg)
    tools.qwen2(seed=1).save_pretrained(model)
    with pytest.raises(ConfigError, match=rf"these keys differ:\n  {model}: sha256 \w+ -> \w+"):
        claim(cfg.folder, cfg, inner=False)
    with pytest.raises(ConfigError, match=rf"{model}: the run in {cfg.folder} read another content there"):
        refuse_others(cfg.folder, cfg)


def test_every_part_of_a_pipeline_counts_and_what_is_written_about_it_does_not(tmp_path):
    (tmp_path / "transformer").mkdir()
    weights, card = tmp_path / "transformer" / "weights.safetensors", tmp_path / "README.md"
    for file in (tmp_path / "model_index.json", weights, card):
        file.write_text("{}")
    before = digest_of(tmp_path)
    card.write_text("another licence")
    assert digest_of(tmp_path) == before
    weights.write_text("[]")
    assert digest_of(tmp_path) != before


@pytest.mark.parametrize("index", ["manifest.json", "latents.json"])
def test_a_prepared_folder_is_known_by_its_index(tmp_path, index):
    (tmp_path / "rows.jsonl").write_text("[]")
    plain = digest_of(tmp_path)
    (tmp_path / index).write_text("{}")
    first = digest_of(tmp_path)
    (tmp_path / index).write_text('{"a": 1}')
    assert len({plain, first, digest_of(tmp_path)}) == 3


def test_a_name_on_a_hub_has_no_digest(tmp_path):
    assert digests(run_of(tmp_path, "Qwen/Qwen2.5-0.5B")) == {}
    assert digests(run_of(tmp_path, tmp_path / "gone")) == {}


def test_records_of_runs_without_digests_are_taken(tmp_path, model):
    cfg = run_of(tmp_path, model)
    claim(cfg.folder, cfg, inner=False)
    file = cfg.folder / "config.json"
    facts = json.loads(file.read_text())
    file.write_text(json.dumps(facts | {"files": {}}))
    claim(cfg.folder, cfg, inner=False)
    refuse_others(cfg.folder, cfg)


def test_eval_refuses_data_that_was_prepared_anew(tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"question": "{i}+1", "answer": "{i + 1}"}}\n' for i in range(400)))
    words = [f"data={{type: rows, path: {tmp_path}/rows.jsonl, test: 4, select: 4}}", f"dir={tmp_path}", "name=run"]
    cfg = load_config("orz-tiny", words)
    claim(cfg.folder, cfg, inner=False)
    (tmp_path / "rows.jsonl").write_text('{"question": "1+1", "answer": "3"}\n')
    assert main(["eval", "orz-tiny", *words]) == 2
    assert f"{tmp_path}/rows.jsonl: the run in {tmp_path}/run read another content" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_every_path_of_prepared_data_or_of_a_model_is_read(name):
    """A new choice of data or model must say what it reads."""
    cfg = load_config(name)
    read = config.reads(cfg)
    values = dict(config.flatten(config.to_dict(cfg)))
    for key, value in values.items():
        leaf = key.rpartition(".")[2]
        judged = key.startswith(("judge", "engine", "released"))  # what is heard or made later, not learned from
        if leaf in ("folder", "path") and value and not judged and not key.startswith(("reward", "rollout")):
            assert str(value) in read or Path(str(value)).suffix == ".py", key
