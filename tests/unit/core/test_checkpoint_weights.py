"""Weights out of a checkpoint are those that the run had, whatever wrote it; a model that takes them is the run's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch.distributed import checkpoint as dcp
from transformers import AutoModelForCausalLM

from stepstack.batching.collate import collate
from stepstack.config import ConfigError
from stepstack.core import checkpoint
from stepstack.core.config import AdamW, Lora, TrainableConfig
from stepstack.core.types import LossOut
from stepstack.core.weights import load_into, read
from stepstack.loops.supervised import likelihood
from stepstack.models.lm.policy import Policy
from stepstack.models.lm.value import Value
from tests import tools

MICRO = collate(tools.rows([(4, 6), (3, 5)]), True, "cpu")
IDS = torch.tensor([[5, 6, 7, 8]])


def square(module, micro) -> LossOut:
    value = module(micro.input_ids, micro.position_ids, micro.select)
    return LossOut(total=((value - 1.0) ** 2).sum(), count=micro.count, work=micro.work)


def trained(folder, make=tools.qwen2, lora=None):
    """A run of actor and critic, two updates each, saved as step 2. The critic comes second, and differs."""
    run = tools.make_run(folder, **({} if lora is None else {"actor": TrainableConfig(lora=lora)}))
    cfg = TrainableConfig(optim=AdamW(lr=1e-2), lora=lora)
    actor = run.trainable("actor", Policy(make()), cfg, 10)
    critic = run.trainable("critic", Value(make(seed=1)), TrainableConfig(optim=AdamW(lr=1e-2)), 10)
    for run.step in (1, 2):
        actor.update([MICRO], likelihood, 11)
        critic.update([MICRO], square, 11)
    run.save()
    return run, run.checkpoints / "step-00000002"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("run"))


def same(found, expected) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("make", [tools.qwen2, tools.llama, tools.gpt2])
def test_they_are_the_runs_and_its_exports(tmp_path, make):
    """Tied embeddings (qwen2, gpt2) and untied ones (llama)."""
    run, folder = trained(tmp_path, make)
    found = read(folder, "actor")
    same(found, dict(run.trainables["actor"].named_weights()))
    exported = AutoModelForCausalLM.from_pretrained(run.export("actor", run.dir / "model"))
    same(found, dict(exported.named_parameters()))
    lm = make(seed=7)
    with torch.no_grad():
        before = lm(IDS).logits.clone()
        load_into(lm, found)
        assert torch.equal(lm(IDS).logits, exported(IDS).logits)
        assert not torch.equal(before, exported(IDS).logits)


def test_roles_are_not_mixed_up(saved):
    run, folder = saved
    same(read(folder, "critic"), dict(run.trainables["critic"].named_weights()))
    name = "layers.0.self_attn.q_proj.weight"
    assert not torch.equal(read(folder, "critic")[name], read(folder, "actor")[f"model.{name}"])
    with pytest.raises(ConfigError, match=r"step-00000002 holds no role 'judge': there are actor, critic"):
        read(folder, "judge")


@pytest.mark.parametrize("make", [tools.qwen2, tools.llama])
def test_adapters_are_merged(tmp_path, make):
    run, folder = trained(tmp_path, make, Lora(r=4, alpha=24))
    found = read(folder, "actor")
    same(found, dict(run.trainables["actor"].named_weights()))
    assert not torch.equal(found["model.layers.0.mlp.up_proj.weight"], make().model.layers[0].mlp.up_proj.weight)
    (run.dir / "config.json").unlink()  # the checkpoint is enough
    same(read(folder, "actor"), found)


def test_adapters_of_an_embedding_are_refused(tmp_path):
    _, folder = trained(tmp_path, tools.llama, Lora(r=4, targets=("embed_tokens", "q_proj")))
    with pytest.raises(ConfigError, match=r"the adapter of model\.embed_tokens is not that of a torch Linear"):
        read(folder, "actor")


def test_adapters_of_transposed_layers_are_refused(tmp_path):
    """GPT-2 keeps its matrices the other way round."""
    _, folder = trained(tmp_path, tools.gpt2, Lora(r=4))
    with pytest.raises(ConfigError, match=r"the adapter of transformer\.h\.0\.\S+ is not that of a torch Linear"):
        read(folder, "actor")


def test_a_tied_head_is_kept_once(saved):
    _, folder = saved
    stored = dcp.FileSystemReader(folder / "actor").read_metadata().state_dict_metadata
    assert "weights.lm.model.embed_tokens.weight" in stored
    assert "weights.lm.lm_head.weight" not in stored


def test_what_cannot_be_read_is_refused(saved, tmp_path):
    _, folder = saved
    torn = shutil.copytree(folder, tmp_path / "torn")
    (torn / "actor" / ".metadata").unlink()
    with pytest.raises(ConfigError, match=r"torn is no whole checkpoint \(actor/.metadata is missing\)"):
        read(torn, "actor")


def test_another_model_is_refused(saved):
    _, folder = saved
    with pytest.raises(ConfigError, match=r"a checkpoint of another model: \d+ names differ, as "):
        load_into(tools.gpt2(), read(folder, "actor"))
    untied = tools.llama(attention_bias=True)  # Qwen2's names and a head of its own
    with pytest.raises(ConfigError, match=r"names differ, as lm_head\.weight"):
        load_into(untied, read(folder, "actor"))


def test_a_checkpoint_of_an_older_format_is_refused(saved, tmp_path):
    _, folder = saved
    old = Path(shutil.copytree(folder, tmp_path / "old"))
    facts = json.loads((old / "state.json").read_text())
    del facts["launch"]
    (old / "state.json").write_text(json.dumps(facts))
    (old / checkpoint.MANIFEST).unlink()
    checkpoint.finish(old, tmp_path / "step-00000002", {})
    with pytest.raises(ConfigError, match="step-00000002 was written by an older stepstack"):
        read(tmp_path / "step-00000002", "actor")


def test_a_checkpoint_of_other_roles_is_refused(saved, tmp_path):
    run, _ = saved
    shutil.copytree(run.dir, tmp_path / run.dir.name)
    other = tools.make_run(tmp_path)
    other.trainable("actor", Policy(tools.qwen2()), TrainableConfig(optim=AdamW(lr=1e-2)), 10)
    with pytest.raises(ConfigError, match=r"holds roles \['actor', 'critic'\], this run has \['actor'\]"):
        other.resume()
