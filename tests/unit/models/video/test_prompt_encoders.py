"""Any prompt encodes, alike every time; real encoders of transformers stand behind the same protocol."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertModel

from stepstack.models.lm import tiny
from stepstack.models.video.prompt_encoders import CutPrompts, TransformersEncoders, WordHashes


def test_a_word_is_the_same_vector_wherever_it_stands():
    result = WordHashes(widths=(12, 7)).encode(["a red circle", "red"])
    assert result.text_BLC.shape == (2, 16, 12)
    assert result.clip_BMC.shape == (2, 8, 7)
    assert result.mask_BL.sum(1).tolist() == [4, 2]
    step = result.text_BLC[0, 1] - result.text_BLC[1, 0]
    shift = result.text_BLC[0, 5] - result.text_BLC[1, 4]  # both the end token: places differ in the same way
    assert step.shape == shift.shape
    again = WordHashes(widths=(12, 7)).encode(["a red circle"])
    assert torch.equal(again.text_BLC[0], result.text_BLC[0])
    assert (
        result.text_BLC[0, 1] - WordHashes(widths=(12, 7)).encode(["a blue circle"]).text_BLC[0, 1]
    ).abs().max() > 0.5


def test_order_matters_and_any_text_encodes():
    enc = WordHashes()
    result = enc.encode(
        ["right then left", "left then right", "", "一只猫 跑。", "x" * 9000 + " word" * 500, "🙂\x00\n"]
    )
    assert torch.isfinite(result.text_BLC).all()
    assert (result.text_BLC[0] - result.text_BLC[1]).abs().max() > 0.5
    assert result.mask_BL.sum(1).tolist() == [4, 4, 1, 6, 16, 3]
    vectors = result.text_BLC[result.mask_BL]
    assert 0.7 < float(vectors.std()) < 1.3
    with pytest.raises(ValueError, match="no prompts"):
        enc.encode([])


def test_real_encoders_give_their_last_hidden_states():
    words = tiny.tokenizer()
    lm = tiny.qwen2(len(words), hidden=16, layers=1, intermediate=16, seed=0).eval()
    torch.manual_seed(0)
    bert = BertModel(
        BertConfig(
            vocab_size=len(words), hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        )
    ).eval()
    enc = TransformersEncoders((lm, words), (bert, words), lengths=(24, 10))
    result = enc.encode(["a red circle", "x"])
    assert enc.widths == (16, 12)
    assert result.text_BLC.shape == (2, 24, 16)
    assert result.clip_BMC.shape == (2, 10, 12)
    assert result.mask_BL.sum(1).tolist() == [12, 1]
    alone = enc.encode(["x"])
    torch.testing.assert_close(alone.text_BLC[0, :1], result.text_BLC[1, :1])
    torch.testing.assert_close(alone.clip_BMC[0], result.clip_BMC[1])
    exact, long = "x" * 9, "x" * 25
    assert enc.cut([]) == enc.cut(["x", exact]) == CutPrompts()
    assert enc.cut(["x", "a red circle", long]) == CutPrompts(language=1, clip=2)
    for text in ("x" * 10, "x" * 11):  # what is counted is what changes nothing any more
        changed = enc.encode([text])
        same = (changed.clip_BMC == enc.encode([text + "x"]).clip_BMC).all()
        assert bool(same) == bool(enc.cut([text + "x"]).clip and len(text) > 9)
    ids = torch.tensor([words("a red circle")["input_ids"]])
    torch.testing.assert_close(result.text_BLC[0, :12], lm.model(input_ids=ids).last_hidden_state[0].detach())


@given(st.integers(0, 12), st.tuples(st.integers(2, 8), st.integers(2, 8)))
@settings(deadline=None)
def test_a_prompt_counts_as_cut_where_one_more_word_changes_nothing(count, lengths):
    enc = WordHashes(widths=(8, 8), lengths=lengths)
    text = " ".join(["a"] * count)
    one, more = enc.encode([text]), enc.encode([f"{text} b"])
    cut = enc.cut([f"{text} b"])
    assert bool(cut.language) == bool((one.text_BLC == more.text_BLC).all())
    assert bool(cut.clip) == bool((one.clip_BMC == more.clip_BMC).all())
    assert bool(cut) == ("are cut" in str(cut) and cut != CutPrompts())
