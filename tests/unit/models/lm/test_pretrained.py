"""Models that are read from a folder hold what the folder says, or are refused by name."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from stepstack.config import ConfigError
from stepstack.models.lm import pretrained, tiny
from stepstack.models.lm.config import Pretrained
from tests.families import APART, LEAKING, family


@pytest.fixture
def folder(tmp_path):
    tiny.qwen2(259, hidden=32, layers=2, intermediate=48, seed=0).save_pretrained(tmp_path)
    return tmp_path


def test_weights_and_skeleton_have_one_shape(folder):
    whole, empty = pretrained.load(Pretrained(path=str(folder))), pretrained.skeleton(Pretrained(path=str(folder)))
    assert {n: p.shape for n, p in whole.named_parameters()} == {n: p.shape for n, p in empty.named_parameters()}
    saved = load_file(folder / "model.safetensors")
    assert all(torch.equal(dict(whole.named_parameters())[name], value) for name, value in saved.items())


def test_the_scale_is_counted_without_loading_a_weight(folder):
    lm = pretrained.load(Pretrained(path=str(folder)))
    body = sum(p.numel() for n, p in lm.named_parameters() if "embed" not in n)
    (folder / "model.safetensors").unlink()
    assert Pretrained(path=str(folder)).params == body


def test_a_folder_that_lacks_a_weight_is_refused(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=r"lacks 1 of the model's weights.*down_proj\.weight"):
        pretrained.load(Pretrained(path=str(folder)))


@pytest.mark.parametrize("name", [*APART, *LEAKING])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_renamed_weights_are_refused_in_every_family(tmp_path, name, prefix):
    family(name).save_pretrained(tmp_path)
    place = Pretrained(path=str(tmp_path), attention="eager")
    assert pretrained.load(place)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({prefix + k: v for k, v in weights.items()}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=r"of the model's weights, or has them in another shape"):
        pretrained.load(place)


def test_a_weight_that_the_model_has_not_is_refused(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.2.mlp.down_proj.weight"] = weights["model.layers.1.mlp.down_proj.weight"].clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=r"holds 1 weights that a Qwen2ForCausalLM has not: model\.layers\.2\.mlp"):
        pretrained.load(Pretrained(path=str(folder)))


def test_a_tokenizer_with_more_ids_than_embeddings_is_refused(folder):
    tokenizer = tiny.tokenizer()
    tiny.qwen2(len(tokenizer), hidden=32, layers=2, intermediate=48, seed=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    rows = len(tokenizer)
    assert len(pretrained.load_tokenizer(Pretrained(path=str(folder)))) == len(tokenizer)
    tokenizer.add_tokens([f"<{i}>" for i in range(300)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ConfigError, match=rf"its tokenizer has {len(tokenizer)} ids, its model {rows} embeddings"):
        pretrained.load_tokenizer(Pretrained(path=str(folder)))


@pytest.mark.parametrize(("there", "chosen"), [(True, "flash_attention_2"), (False, "sdpa")])
def test_attention_auto_takes_what_is_there_and_says_so_once(there, chosen, monkeypatch, capsys):
    monkeypatch.setattr(pretrained, "is_flash_attn_2_available", lambda: there)
    pretrained.best_attention.cache_clear()
    assert [pretrained.attention(Pretrained(path="x", attention="auto")) for _ in range(2)] == [chosen] * 2
    assert capsys.readouterr().err == f"attention=auto: {chosen}\n"
    assert pretrained.attention(Pretrained(path="x", attention="eager")) == "eager"
    pretrained.best_attention.cache_clear()
