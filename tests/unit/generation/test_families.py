"""Sampling and training of many families of models say the same of every token, or the family is refused by name."""

import pytest
import torch

from stepstack.batching.collate import collate
from stepstack.batching.rows import Row
from stepstack.config import ConfigError
from stepstack.generation.types import Sampling
from stepstack.models.lm.policy import Policy
from tests import tools
from tests.families import APART, LEAKING, STATEFUL, family

SAMPLING = Sampling(n=2, max_tokens=8)


@pytest.mark.parametrize("name", [name for name in (*APART, *LEAKING) if name not in STATEFUL])
def test_log_probabilities_are_the_trainers(name):
    lm = family(name)
    rollouts = tools.sampled(tools.generator(lm), tools.prompts([3, 7, 5]), SAMPLING).values()
    for i, rollout in enumerate(rollouts):
        micro = collate([Row.of(rollout, 0.0, i)], pack=False, device="cpu")
        with torch.no_grad():
            logp_N, _ = Policy(lm)(**micro.inputs())
        assert logp_N.tolist() == pytest.approx(rollout.logprobs, abs=1e-4)


@pytest.mark.parametrize("name", STATEFUL)
def test_a_family_that_cannot_be_decoded_is_refused_by_name(name):
    with pytest.raises(ConfigError, match=rf"{name} has layers that carry a state .*vllm"):
        tools.generator(family(name))


class WithEnd:
    """The end token that a tokenizer names."""

    def __init__(self, eos):
        self.eos_token_id = eos

    def __len__(self):
        return tools.VOCAB

    def decode(self, ids, **_):
        return " ".join(map(str, ids))


def without_end(lm):
    lm.config.eos_token_id = None
    lm.generation_config.eos_token_id = None
    return lm


def test_the_tokenizers_end_token_ends_a_response():
    lm = without_end(tools.qwen2())
    free = tools.sampled(tools.generator(lm, WithEnd(None)), tools.prompts([3]), Sampling(max_tokens=30, stop=("no",)))
    [ids] = [rollout.ids for rollout in free.values()]
    end = ids[4]
    ended = tools.sampled(tools.generator(lm, WithEnd(end)), tools.prompts([3]), Sampling(max_tokens=30))
    [rollout] = ended.values()
    assert rollout.ids == ids[: ids.index(end) + 1]
    assert rollout.finish == "stop"


def test_a_model_that_nothing_stops_is_refused():
    generator = tools.generator(without_end(tools.qwen2()), WithEnd(None))
    with pytest.raises(ConfigError, match="neither the model nor its tokenizer names an end token"):
        next(generator.generate(tools.prompts([3]), Sampling()))
