"""The dual codebook's layout against a table by hand, and the mask that keeps it, in the sampler and in the trainer."""

import pytest
import torch

from stepstack.batching.collate import collate, collate_shared
from stepstack.batching.rows import Row
from stepstack.batching.shared import siblings
from stepstack.generation.config import HfConfig
from stepstack.generation.hf import HfGenerator
from stepstack.generation.types import Sampling
from stepstack.models.lm import tiny
from stepstack.models.lm.policy import Policy
from stepstack.models.speech.mask import GroupMask
from stepstack.models.speech.tokens import GROUP, PUBLISHED, TokenLayout, seconds
from tests import tools

LAYOUT = TokenLayout(first=40, linguistic=20, semantic=30)
END = 1
EXACT = 2e-5  # nats; the trainer itself is up to 1.4e-5 from float64, and a forgotten mask is 0.1 and more


def test_published_ids():
    assert (PUBLISHED.size, PUBLISHED.vocab, PUBLISHED.first_semantic) == (5120, 70656, 66560)
    assert PUBLISHED.interleave([0, 1023], [0, 1, 4095]) == [65536, 66559, 66560, 66561, 70655]
    assert PUBLISHED.to_text([65536, 70655]) == "<audio_0><audio_5119>"


def test_interleave_by_hand():
    """Two groups; a seventh semantic code and a fifth linguistic one are left over."""
    linguistic, semantic = [1, 2, 3, 4, 5], [10, 11, 12, 13, 14, 15, 16]
    table = [41, 42, 70, 71, 72, 43, 44, 73, 74, 75]
    assert LAYOUT.interleave(linguistic, semantic) == table
    assert LAYOUT.split(table) == ([1, 2, 3, 4], [10, 11, 12, 13, 14, 15])
    assert seconds(table) == pytest.approx(0.24)


@pytest.mark.parametrize("samples", range(0, 16000, 641))
def test_exact_ratio_for_any_length(samples):
    linguistic, semantic = [0] * (samples // 960), [0] * (samples // 640)
    ids = LAYOUT.interleave(linguistic, semantic)
    assert len(ids) == samples // 1920 * GROUP
    back = LAYOUT.split(ids)
    assert 3 * len(back[0]) == 2 * len(back[1])


def test_text_round_trip():
    ids = LAYOUT.interleave([0, 19], [0, 1, 29])
    assert LAYOUT.from_text(LAYOUT.to_text(ids)) == ids
    for text in ("<audio_50>", "hello", "<audio_1> "):
        with pytest.raises(ValueError, match="is no sequence"):
            LAYOUT.from_text(text)
    with pytest.raises(ValueError, match="no audio token"):
        LAYOUT.to_text([3])


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([60], "token 0 is 60, no linguistic"),
        ([41, 42, 43], "token 2 is 43, no semantic"),
        ([41, 42, 90], "token 2 is 90"),
        ([41, 42, 61, 62], "no whole groups"),
    ],
)
def test_broken_sequences(ids, words):
    with pytest.raises(ValueError, match=words):
        LAYOUT.split(ids)


def test_codes_beyond_a_codebook():
    with pytest.raises(ValueError, match="linguistic code 20"):
        LAYOUT.interleave([20, 0], [0, 0, 0])
    with pytest.raises(ValueError, match="semantic code -1"):
        LAYOUT.interleave([0, 0], [0, 0, -1])
    assert LAYOUT.whole_groups([5, 41, 42, 61, 62, 63, 41, 1]) == [41, 42, 61, 62, 63]


# -- the mask -------------------------------------------------------------------------------------------------------


def masked_rollouts(mask, lengths=(4, 9, 1, 2), decoder="auto", temperature=0.8, max_tokens=40):
    lm = tools.qwen2()
    generator = HfGenerator(lm, tiny.tokenizer(), HfConfig(decoder=decoder), mask=mask)
    sampling = Sampling(n=4, temperature=temperature, max_tokens=max_tokens, seed=3)
    groups = generator.generate(tools.prompts(list(lengths), vocab=LAYOUT.first), sampling)
    return lm, [rollout for group in groups for rollout in group.rollouts]


def trainer(lm, mask, rollouts, pack, temperature=0.8, share=False):
    rows = [Row.of(r, 0.0, i) for i, r in enumerate(rollouts)]
    micro = collate_shared(siblings(rows, 10_000), pack, "cpu") if share else collate(rows, pack, "cpu")
    with torch.no_grad():
        return Policy(lm, mask=mask)(**micro.inputs(), temperature=temperature)[0]


@pytest.mark.parametrize("decoder", ["auto", "module"])
def test_rollouts_keep_the_layout_and_the_trainer_agrees(decoder):
    mask = GroupMask(LAYOUT, [END], 100)
    lm, rollouts = masked_rollouts(mask, decoder=decoder)
    assert {r.finish for r in rollouts} == {"stop", "length"}
    for rollout in rollouts:
        body = rollout.ids[:-1] if rollout.finish == "stop" else rollout.ids
        assert LAYOUT.split(body)[0]  # whole groups, at least one; 40 tokens are eight groups
    sampled = torch.tensor([x for r in rollouts for x in r.logprobs])
    for pack in (False, True):
        for share in (False, True):
            assert (trainer(lm, mask, rollouts, pack, share=share) - sampled).abs().max() < EXACT
        assert (trainer(lm, None, rollouts, pack) - sampled).abs().max() > 0.1  # what forgetting it would show


def test_greedy_keeps_the_layout():
    _, rollouts = masked_rollouts(GroupMask(LAYOUT, [END], 100), temperature=0.0, max_tokens=25)
    for rollout in rollouts:
        LAYOUT.split([token for token in rollout.ids if token != END])


def test_prompts_that_end_in_audio_go_on_with_their_group():
    mask = GroupMask(LAYOUT, [END], 100)
    recent = torch.tensor(
        [[-1, -1, 3], [-1, 3, 41], [3, 41, 42], [41, 42, 61], [42, 61, 62], [61, 62, 63], [62, 63, 1]]
    )
    assert mask.states(recent).tolist() == [0, 1, 2, 3, 4, 5, 0]
    allowed = [(~row).nonzero()[:, 0].tolist() for row in mask.forbidden]
    assert allowed[0] == allowed[1] == list(range(40, 60))
    assert allowed[2] == allowed[3] == allowed[4] == list(range(60, 90))
    assert allowed[5] == [END, *range(40, 60)]


def test_chunks_of_logits_are_masked_too(monkeypatch):
    mask = GroupMask(LAYOUT, [END], 100)
    lm, rollouts = masked_rollouts(mask)
    whole = trainer(lm, mask, rollouts, True)
    monkeypatch.setattr("stepstack.models.lm.policy.MAX_LOGIT_POSITIONS", 37)
    torch.testing.assert_close(trainer(lm, mask, rollouts, True), whole)


def test_a_vocabulary_that_is_too_small():
    with pytest.raises(ValueError, match="up to 89, the model only 80"):
        GroupMask(LAYOUT, [END], 80)
