"""The local sampler against the trainer's own forward, its stop rules, and its independence of the batch."""

import pytest
import torch

from stepstack.batching.collate import collate
from stepstack.batching.rows import Row
from stepstack.core.config import Lora, TrainableConfig
from stepstack.generation.decode import Fused, Module
from stepstack.generation.types import Rollout, Sampling
from stepstack.models.lm import tiny
from stepstack.models.lm.policy import Policy
from tests import tools

EXACT = 1e-5  # nats; a forgotten temperature or mask is 0.5 and more
MODELS = {
    "qwen2": tools.qwen2,
    "llama": tools.llama,
    "llama-tied": lambda: tools.llama(tie_word_embeddings=True),
    "llama-bias": lambda: tools.llama(attention_bias=True, mlp_bias=True),
    "gpt2": tools.gpt2,
}


def trainer_logprobs(lm, rollouts: list[Rollout], pack: bool, temperature: float) -> torch.Tensor:
    rows = [Row.of(r, 0.0, i) for i, r in enumerate(rollouts)]
    micro = collate(rows, pack, "cpu")
    with torch.no_grad():
        return Policy(lm)(micro.input_ids, micro.position_ids, micro.select, micro.labels, temperature)[0]


def mismatch(lm, rollouts: list[Rollout], pack: bool = False, temperature: float = 1.0) -> float:
    sampler = torch.tensor([x for r in rollouts for x in r.logprobs])
    return (trainer_logprobs(lm, rollouts, pack, temperature) - sampler).abs().max().item()


# -- log-probabilities ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("decoder", ["auto", "module"])
def test_sampler_and_trainer_agree(name, decoder, temperature):
    """Uneven prompts (left padding), rows that leave early, several samples a prompt; padded and packed in training."""
    lm = MODELS[name]()
    sampling = Sampling(n=3, temperature=temperature, max_tokens=40, seed=1)
    rollouts = list(
        tools.sampled(tools.generator(lm, decoder=decoder), tools.prompts([3, 9, 1, 17]), sampling).values()
    )
    assert len({len(r.ids) for r in rollouts}) > 1
    assert mismatch(lm, rollouts, temperature=temperature) < EXACT
    assert mismatch(lm, rollouts, pack=True, temperature=temperature) < EXACT
    if temperature != 1.0:
        assert mismatch(lm, rollouts) > 0.1  # what forgetting it would show


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("decoder", [Fused, Module])
def test_decoders_equal_the_plain_forward(name, decoder):
    """Left-padded prefill, two steps, a row that leaves: the logits of each row alone."""
    lm = MODELS[name]()
    if decoder is Fused:
        if name in ("gpt2", "llama-bias"):
            with pytest.raises(ValueError, match="use decoder=module"):
                Fused(lm.config, "cpu", lm.dtype)
            return
        made = Fused(lm.config, "cpu", lm.dtype)
        made.load(lm.state_dict().items())
    else:
        made = Module(lm)
    torch.manual_seed(0)
    alone = [torch.randint(2, tools.VOCAB, (n,)) for n in (5, 2, 11)]
    ids = torch.stack([torch.nn.functional.pad(s, (11 - len(s), 0)) for s in alone])
    with torch.no_grad():

        def plain(rows):
            return torch.stack([lm(row[None]).logits[0, -1] for row in rows])

        found = made.prefill(ids, torch.tensor([6, 9, 0]), 2, 4)
        alone = [row for row in alone for _ in "ab"]
        torch.testing.assert_close(found, plain(alone), atol=2e-5, rtol=1e-5)
        for step in range(3):
            if step == 1:
                made.keep(torch.tensor([0, 2, 3, 5]))
                alone = [alone[i] for i in (0, 2, 3, 5)]
            token = torch.randint(2, tools.VOCAB, (len(alone),))
            alone = [torch.cat([row, t[None]]) for row, t in zip(alone, token, strict=True)]
            torch.testing.assert_close(made.step(token), plain(alone), atol=2e-5, rtol=1e-5)


def test_the_fused_decoder_in_bfloat16():
    """Of left-padded prompts and three steps behind them: logits up to 3.2, of which rounding moves 0.1 and a rotation
    left out 2.9."""
    whole, lm = tools.qwen2(), tools.qwen2().bfloat16()
    decoder = Fused(lm.config, "cpu", lm.dtype)
    decoder.load(lm.named_parameters())
    torch.manual_seed(0)
    rows = [torch.randint(2, tools.VOCAB, (length,)) for length in (7, 12)]
    ids = torch.stack([torch.nn.functional.pad(row, (12 - len(row), 0)) for row in rows])
    with torch.no_grad():
        logits = decoder.prefill(ids, torch.tensor([5, 0]), 1, 4)
        for _ in range(4):
            exact = torch.stack([whole(row[None]).logits[0, -1] for row in rows])
            assert logits.dtype == torch.bfloat16
            torch.testing.assert_close(logits.float(), exact, atol=0.3, rtol=0)
            token = torch.randint(2, tools.VOCAB, (2,))
            rows = [torch.cat([row, t[None]]) for row, t in zip(rows, token, strict=True)]
            logits = decoder.step(token)


def test_gpt2_would_notice_wrong_positions():
    """The control of the test above: with RoPE nobody can see a forgotten position_ids."""
    lm = tools.gpt2()
    torch.manual_seed(0)
    ids = torch.randint(2, tools.VOCAB, (1, 20))
    with torch.no_grad():
        shifted = lm(ids, position_ids=torch.arange(30, 50)[None]).logits
        assert (lm(ids).logits - shifted).log_softmax(-1).abs().max() > 0.1


def test_auto_takes_module_where_fused_cannot():
    assert isinstance(tools.generator(tools.qwen2()).decoder, Fused)
    assert isinstance(tools.generator(tools.gpt2()).decoder, Module)
    assert isinstance(tools.generator(tools.llama(attention_bias=True)).decoder, Module)
    scaled = tools.llama(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0})
    assert isinstance(tools.generator(scaled).decoder, Module)
    with pytest.raises(ValueError, match="decoder=module"):
        tools.generator(scaled, decoder="fused")


@pytest.mark.parametrize("make", [tools.qwen2, tools.gpt2])
def test_loaded_weights_are_the_ones_that_sample(make):
    """Perturbed weights, loaded: the sampler follows. Changed in place and not loaded: it keeps its own copy."""
    lm = make()
    generator, prompts = tools.generator(lm), tools.prompts([4, 6])
    sampling = Sampling(n=2, max_tokens=12)
    before = tools.sampled(generator, prompts, sampling)
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    assert tools.sampled(generator, prompts, sampling) == before
    assert mismatch(lm, list(before.values())) > 1e-2
    generator.load(lm.named_parameters(), version=7)
    after = tools.sampled(generator, prompts, sampling)
    assert after != before
    assert mismatch(lm, list(after.values())) < EXACT
    assert {r.version for r in after.values()} == {7}


def test_adapters_are_part_of_the_loaded_weights(tmp_path):
    lm, run = tools.qwen2(), tools.make_run(tmp_path)
    generator, of, sampling = tools.generator(lm), tools.prompts([4, 6]), Sampling(n=2, max_tokens=12)
    actor = run.trainable("actor", Policy(lm), TrainableConfig(lora=Lora(r=4)), total_updates=1)
    with torch.no_grad():
        for parameter in actor.parameters:
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    generator.load(actor.named_weights(), version=1)
    rollouts = list(tools.sampled(generator, of, sampling).values())
    assert mismatch(lm, rollouts) < EXACT
    assert mismatch(tools.qwen2(), rollouts) > 0.1  # without them


# -- ends -----------------------------------------------------------------------------------------------------------

BPE = tools.bpe_tokenizer()
PROMPT = tools.prompt(0, BPE.encode("x</answer>y"))


def scripted(text_or_ids, tokenizer=BPE, stop=("</answer>",), max_tokens=64, of=PROMPT, **changes):
    ids = tokenizer.encode(text_or_ids) if isinstance(text_or_ids, str) else text_or_ids
    generator = tools.scripted(tokenizer, {of.ids: ids}, **changes)
    return tools.sampled(generator, [of], Sampling(max_tokens=max_tokens, stop=stop))[0, 0]


def test_a_stop_string_that_spans_tokens():
    ids = BPE.encode("7</answer>")
    assert BPE.convert_ids_to_tokens(ids) == ["7", "</", "ans", "wer", ">"]
    found = scripted([*ids, *BPE.encode("User: more")])
    assert (found.finish, found.text, list(found.ids)) == ("stop", "7</answer>", ids)
    assert len(found.logprobs) == len(ids)


def test_text_behind_a_stop_string_within_its_last_token_is_cut_and_the_ids_stay():
    ids = BPE.encode("7</answer> T")
    assert BPE.convert_ids_to_tokens(ids)[-1] == ">ĠT"
    found = scripted([*ids, *BPE.encode("he end")])
    assert (found.finish, found.text, list(found.ids)) == ("stop", "7</answer>", ids)


def test_a_stop_string_that_is_one_token():
    tokenizer = tiny.tokenizer()
    of = tools.prompt(0, tokenizer.encode("User: 1=?"))
    found = scripted("12</answer>34", tokenizer, of=of)
    assert found.text == "12</answer>"
    assert len(found.ids) == 3


def test_a_response_keeps_the_engines_ids():
    """Its text tokenises otherwise: who decodes and encodes again trains on tokens that nobody sampled."""
    ids = [BPE.convert_tokens_to_ids(letter) for letter in "7answer"]
    found = scripted([*ids, BPE.eos_token_id])
    assert Row.of(found, 0.0, 0).ids == (*ids, BPE.eos_token_id)
    assert BPE.encode(found.text) != ids
    assert found.text == "7answer"


def test_almost_a_stop_string_is_none():
    found = scripted("a</answe</ans wer>", max_tokens=64)
    assert found.text.startswith("a</answe</ans wer>")
    assert found.finish == "length"


def test_the_earliest_of_several_stop_strings():
    found = scripted("ab User: cd</answer>", stop=("</answer>", "User:", "Human:"))
    assert (found.finish, found.text) == ("stop", "ab User:")


def test_a_stop_string_in_letters_of_several_bytes():
    found = scripted("ab。cd", stop=("。",))
    assert (found.finish, found.text) == ("stop", "ab。")


def test_stop_text_in_the_prompt_does_not_stop():
    """Nor a stop string whose beginning is the prompt's end."""
    found = scripted("12345", max_tokens=5)
    assert (found.finish, found.text) == ("length", "12345")
    of = tools.prompt(0, BPE.encode("q </answ"))
    assert scripted("er> and on", of=of, max_tokens=6).finish == "length"


def test_eos_ends_and_belongs_to_the_response():
    found = scripted([*BPE.encode("42"), BPE.eos_token_id, *BPE.encode("9")])
    assert list(found.ids) == [*BPE.encode("42"), BPE.eos_token_id]
    assert (found.finish, found.text) == ("stop", "42")


@pytest.mark.parametrize("end", [1, 5, 7])
def test_each_of_several_eos_ids_ends(end):
    of = tools.prompt(0, (60, 61))
    generator = tools.scripted(BPE, {of.ids: [50, end, 51]})
    made = tools.qwen2(len(BPE))
    made.generation_config.eos_token_id = [1, 5, 7]
    generator = tools.generator(made, BPE)
    generator.decoder = tools.Scripted({of.ids: [50, end, 51]}, len(BPE))
    found = tools.sampled(generator, [of], Sampling(max_tokens=3))[0, 0]
    assert (found.ids, found.finish) == ((50, end), "stop")


def endless(lm):
    """Generator of a model that, like its tokenizer, names no end token."""
    lm.generation_config.eos_token_id = lm.config.eos_token_id = None
    tokenizer = tiny.tokenizer()
    tokenizer.eos_token = None
    return tools.generator(lm, tokenizer)


def test_a_model_without_eos_runs_to_the_limit():
    found = tools.sampled(endless(tools.qwen2()), tools.prompts([3]), Sampling(n=4, max_tokens=30, stop=("unsaid",)))
    assert {(len(r.ids), r.finish) for r in found.values()} == {(30, "length")}


def test_pad_equal_to_eos_changes_nothing():
    """Ends are counted, never looked for in ids: prompts hold <eos>, shorter ones are padded with it."""
    lm = tools.qwen2()
    of = [tools.prompt(0, (1, 5, 1)), tools.prompt(1, (9, 1, 1, 1, 1, 8, 7))]
    sampling = Sampling(n=8, max_tokens=60)
    before = tools.sampled(tools.generator(lm), of, sampling)
    lm.config.pad_token_id = lm.generation_config.pad_token_id = 1
    assert tools.sampled(tools.generator(lm), of, sampling) == before
    assert {r.ids[-1] == 1 for r in before.values() if r.finish == "stop"} == {True}
    assert all(1 not in r.ids[:-1] for r in before.values())
    assert mismatch(lm, list(before.values())) < EXACT


@pytest.mark.parametrize(("limits", "length"), [({"max_tokens": 4}, 4), ({"max_tokens": 50, "max_length": 9}, 5)])
def test_a_cut_response_is_finished_by_length(limits, length):
    of = tools.prompt(0, (60, 61, 62, 63))
    found = tools.sampled(tools.scripted(BPE, {of.ids: [50] * 60}), [of], Sampling(**limits))[0, 0]
    assert (found.ids, found.finish) == ((50,) * length, "length")


@pytest.mark.parametrize("last", ["</answer>", "eos"])
def test_a_response_that_ends_with_its_last_token_has_stopped(last):
    ids = [BPE.eos_token_id] if last == "eos" else BPE.encode(last)
    assert scripted(ids, max_tokens=len(ids)).finish == "stop"


def test_prompts_of_one_batch_have_limits_of_their_own():
    of = [tools.prompt(0, (60,) * 3), tools.prompt(1, (61,) * 8)]
    generator = tools.scripted(BPE, {p.ids: [50] * 60 for p in of})
    found = tools.sampled(generator, of, Sampling(n=2, max_tokens=50, max_length=10))
    assert {k: len(r.ids) for k, r in found.items()} == {(0, 0): 7, (0, 1): 7, (1, 0): 2, (1, 1): 2}


def test_a_finished_row_never_runs_out_of_positions():
    """It may stay while few have ended, and a model of absolute positions has no more than it has."""
    lm = tools.gpt2(positions=32)
    of = tools.prompts([30, *[4] * 9])
    found = tools.sampled(endless(lm), of, Sampling(max_tokens=64, stop=("unsaid",)))
    assert [len(found[i, 0].ids) for i in range(10)] == [2, *[28] * 9]
    assert mismatch(lm, list(found.values())) < EXACT


@pytest.mark.parametrize("limit", [{"max_length": 6}, {}])
def test_a_prompt_that_leaves_no_room_is_an_error_before_any_work(limit):
    of = [tools.prompt(0, (5, 6)), tools.prompt(7, (5,) * (600 if not limit else 6))]
    with pytest.raises(ValueError, match=r"prompt 7 has \d+ tokens and leaves no room"):
        next(tools.generator(tools.qwen2()).generate(of, Sampling(max_tokens=4, **limit)))


def test_rows_that_have_ended_leave_the_batch():
    of = [tools.prompt(i, (60, 61, 62 + i)) for i in range(8)]
    generator = tools.scripted(BPE, {p.ids: [50] * (4 * p.problem.index) + [1] for p in of})
    found = tools.sampled(generator, of, Sampling(max_tokens=64))
    assert [len(found[i, 0].ids) for i in range(8)] == [4 * i + 1 for i in range(8)]
    needed = sum(4 * i for i in range(8))
    assert needed <= generator.decoder.fed < 1.2 * needed  # 8 x 28 = 224 without leaving
