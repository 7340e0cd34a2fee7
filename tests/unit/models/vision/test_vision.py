"""Pictures in prompts: positions, decoding and log-probabilities against transformers' own."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from PIL import Image, ImageDraw

from stepstack.batching.collate import collate, collate_shared
from stepstack.batching.rows import Row
from stepstack.batching.shared import siblings
from stepstack.generation.config import HfConfig
from stepstack.generation.hf import HfGenerator
from stepstack.generation.types import Prompt, Sampling
from stepstack.generation.vllm.vision import VllmVision
from stepstack.models.lm import tiny
from stepstack.models.lm.policy import token_logprobs
from stepstack.models.vision import policy as vision
from stepstack.models.vision.policy import ImagePatcher, VisionPolicy, positions
from stepstack.records import Problem
from tests import tools


@dataclass(frozen=True)
class Box:
    """A red box on white."""

    left: int
    width: int = 56
    height: int = 56

    def image(self) -> Image.Image:
        result = Image.new("RGB", (self.width, self.height), "white")
        ImageDraw.Draw(result).rectangle([self.left, 8, self.left + 15, 40], fill="red")
        return result


TOKENIZER = tiny.tokenizer(special=(*tiny.CHAT, *tiny.VISION))
BANNED = [TOKENIZER.get_vocab()[name] for name in tiny.VISION]
START, END, IMAGE, _ = BANNED


@pytest.fixture(scope="module")
def lm():
    return tools.perturbed(tiny.qwen2_5_vl(TOKENIZER, hidden=48, layers=2, intermediate=64, tower=32, seed=0), 0.1)


@pytest.fixture(scope="module")
def patcher() -> ImagePatcher:
    return ImagePatcher(tiny.image_processor())


@pytest.fixture(scope="module")
def prompts(patcher) -> list[Prompt]:
    """One picture, two of different shapes, none; texts of different lengths, so that there is padding."""

    def prompt(index: int, *pictures: Box) -> Prompt:
        ids = [t for p in pictures for t in (START, *[IMAGE] * patcher.tokens((p.width, p.height)), END)]
        return Prompt(Problem(index, "", ""), (*ids, *TOKENIZER(f"a box{'x' * index}").input_ids), pictures)

    return [prompt(0, Box(3)), prompt(1, Box(9, 84, 56), Box(20)), prompt(2), prompt(3, Box(30), Box(3, 56, 112))]


@pytest.fixture(scope="module")
def generator(lm, patcher) -> HfGenerator:
    return HfGenerator(lm, TOKENIZER, HfConfig(batch=64), patcher=patcher, banned=BANNED)


def test_grids_outlive_patches(monkeypatch):
    monkeypatch.setattr(vision, "MAX_CACHED_BYTES", 0)
    monkeypatch.setattr(vision, "MAX_CACHED_GRIDS", 2)
    patcher, read = ImagePatcher(tiny.image_processor()), []
    patches = patcher.patches
    monkeypatch.setattr(patcher, "patches", lambda picture: read.append(picture) or patches(picture))
    one, other, third = Box(3), Box(3, 84, 56), Box(5)
    assert [patcher.picture_grid(box) for box in (one, other, one)] == [(1, 4, 4), (1, 4, 6), (1, 4, 4)]
    assert read == [one, other]
    patcher.picture_grid(third)
    patcher.picture_grid(one)
    assert read == [one, other, third, one]


def inputs(prompt: Prompt, patcher: ImagePatcher) -> dict:
    ids = torch.tensor([prompt.ids])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if prompt.pictures:
        patches = [patcher.patches(p) for p in prompt.pictures]
        batch |= {
            "pixel_values": torch.cat([p.pixels for p in patches]),
            "image_grid_thw": torch.tensor([p.grid for p in patches]),
            "mm_token_type_ids": (ids == IMAGE).int(),
        }
    return batch


def test_positions_are_those_of_transformers(lm, patcher, prompts):
    for prompt in prompts:
        if prompt.pictures:
            batch = inputs(prompt, patcher)
            expected, _ = lm.model.get_rope_index(
                batch["input_ids"], batch["mm_token_type_ids"], image_grid_thw=batch["image_grid_thw"]
            )
            grids = [patcher.patches(p).grid for p in prompt.pictures]
            assert torch.equal(positions(prompt.ids, grids, IMAGE, 2), expected[:, 0])


@pytest.mark.parametrize("ids", [(START, IMAGE, END), (IMAGE,) * 5, (5, 6)])
def test_cut_or_sampled_image_tokens_are_an_error(ids):
    with pytest.raises(ValueError, match="image tokens in the text, but its 1 pictures have 4"):
        positions(ids, [(1, 4, 4)], IMAGE, 2)


def test_greedy_decoding_is_that_of_generate(lm, patcher, prompts, generator):
    groups = {g.prompt.problem.index: g for g in generator.generate(prompts, Sampling(temperature=0, max_tokens=16))}
    for prompt in prompts:
        batch = inputs(prompt, patcher)
        out = lm.generate(**batch, do_sample=False, max_new_tokens=16, suppress_tokens=BANNED)
        mine = groups[prompt.problem.index].rollouts[0].ids
        assert tuple(out[0, len(prompt.ids) :].tolist()[: len(mine)]) == mine


def test_the_sampler_has_the_trainers_log_probabilities(lm, patcher, prompts, generator):
    rollouts = [r for g in generator.generate(prompts, Sampling(n=5, max_tokens=24)) for r in g.rollouts]
    assert len({r.ids for r in rollouts}) > 10
    micro = collate([Row.of(r, 0.0, i) for i, r in enumerate(rollouts)], pack=False, device="cpu")
    with torch.no_grad():
        logp, entropy = VisionPolicy(lm, patcher, BANNED)(**micro.inputs())
    assert (logp - micro.field("sampler")).abs().max() < 1e-5
    assert torch.isfinite(entropy).all()


@pytest.mark.parametrize("pack", [False, True])
def test_samples_share_their_prompt_and_its_pictures(lm, patcher, prompts, generator, pack):
    rollouts = [r for g in generator.generate(prompts, Sampling(n=3, max_tokens=9)) for r in g.rollouts]
    rows = [Row.of(r, 0.0, i) for i, r in enumerate(rollouts)]
    micro = collate_shared(siblings(rows, 10_000), pack, "cpu")
    assert micro.work == sum(len(p.ids) for p in prompts) + sum(len(row.ids) for row in rows)
    assert micro.pictures == [p.pictures for p in sorted(prompts, key=lambda p: len(p.ids))]
    with torch.no_grad():
        logp, _ = VisionPolicy(lm, patcher, BANNED)(**micro.inputs())
    assert (logp - micro.field("sampler")).abs().max() < 1e-5


def test_the_policy_is_the_model_itself(lm, patcher, prompts):
    """Against transformers' forward, prompt by prompt, with the banned tokens taken out of the distribution."""
    after = TOKENIZER("yes").input_ids
    rows = [Row(i, p.ids, tuple(after), pictures=p.pictures) for i, p in enumerate(prompts)]
    micro = collate(rows, pack=False, device="cpu")
    with torch.no_grad():
        logp, _ = VisionPolicy(lm, patcher, BANNED)(**micro.inputs(), temperature=0.7)
        for row, mine in zip(rows, logp.split(len(after)), strict=True):
            batch = inputs(Prompt(Problem(0, "", ""), (*row.prompt_ids, *after), row.pictures), patcher)
            logits = lm(**batch).logits[0, len(row.prompt_ids) - 1 : -1]
            logits[:, BANNED] = -torch.inf
            expected, _ = token_logprobs(logits, torch.tensor(after), 0.7)
            assert torch.allclose(mine, expected, atol=1e-5)


def test_neither_batch_nor_padding_changes_a_sample(prompts, generator):
    together = {
        r.prompt.problem.index: r for g in generator.generate(prompts, Sampling(max_tokens=20)) for r in g.rollouts
    }
    for prompt in prompts:
        [group] = generator.generate([prompt], Sampling(max_tokens=20))
        assert group.rollouts[0].ids == together[prompt.problem.index].ids
        assert group.rollouts[0].logprobs == pytest.approx(together[prompt.problem.index].logprobs, abs=1e-5)


def test_what_is_banned_is_never_sampled(lm, patcher, prompts):
    likely = list(range(2, len(TOKENIZER), 2))
    picky = HfGenerator(lm, TOKENIZER, HfConfig(batch=64), patcher=patcher, banned=[*BANNED, *likely])
    drawn = {t for g in picky.generate(prompts, Sampling(n=8, max_tokens=20)) for r in g.rollouts for t in r.ids}
    assert drawn
    assert not drawn & {*BANNED, *likely}


def test_the_picture_matters(lm, patcher, prompts, generator):
    """Another picture, another distribution; the same one twice goes through the tower once."""
    other = [Prompt(p.problem, p.ids, tuple(Box(b.left + 5, b.width, b.height) for b in p.pictures)) for p in prompts]
    first, second = (
        {g.prompt.problem.index: g.rollouts[0] for g in generator.generate(some, Sampling(max_tokens=8))}
        for some in (prompts, other)
    )
    changed = [i for i in first if first[i].logprobs != second[i].logprobs]
    assert changed == [p.problem.index for p in prompts if p.pictures]
    observed = []
    tower = generator.decoder.tower
    handle = tower.register_forward_hook(lambda module, args, out: observed.append(len(args[0])))
    list(
        generator.generate([prompts[0], Prompt(Problem(9, "", ""), prompts[0].ids, prompts[0].pictures)], Sampling(n=4))
    )
    handle.remove()
    assert observed == [16]


def test_gradients_reach_the_tower_unless_it_is_frozen(lm, patcher, prompts):
    rows = [Row(0, prompts[1].ids, tuple(TOKENIZER("ok").input_ids), pictures=prompts[1].pictures)]
    policy = VisionPolicy(lm, patcher, BANNED)
    policy(**collate(rows, pack=False, device="cpu").inputs())[0].sum().backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for n, p in lm.model.visual.named_parameters() if "weight" in n
    )
    lm.zero_grad()


def test_new_weights_reach_the_tower_too(lm, patcher, prompts):
    own = HfGenerator(lm, TOKENIZER, HfConfig(batch=64), patcher=patcher, banned=BANNED)
    other = tools.perturbed(tiny.qwen2_5_vl(TOKENIZER, hidden=48, layers=2, intermediate=64, tower=32, seed=1), 0.1)
    own.load(other.named_parameters(), version=3)
    fresh = HfGenerator(other, TOKENIZER, HfConfig(batch=64), patcher=patcher, banned=BANNED)
    a, b = ([r.ids for g in who.generate(prompts, Sampling(n=2)) for r in g.rollouts] for who in (own, fresh))
    assert a == b


def test_packed_rows_do_not_see_each_other(lm, patcher, prompts):
    """With pictures in some rows, in all and in none."""
    policy = VisionPolicy(lm, patcher, BANNED)
    words = Row(2, tuple(TOKENIZER("a dot").input_ids), tuple(TOKENIZER("is it").input_ids))
    rows = [
        Row(i, p.ids, tuple(TOKENIZER("yes" * (i + 1)).input_ids), pictures=p.pictures) for i, p in enumerate(prompts)
    ]
    for some in (rows, [words, *rows[:1], words], [words, words]):
        with torch.no_grad():
            alone = torch.cat([policy(**collate([row], pack=False, device="cpu").inputs())[0] for row in some])
            packed = policy(**collate(some, pack=True, device="cpu").inputs())[0]
        torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-5)


def test_a_module_decoder_reads_no_pictures(prompts):
    plain = HfGenerator(tools.gpt2(), TOKENIZER, HfConfig(decoder="module"))
    with pytest.raises(ValueError, match="reads no pictures"):
        list(plain.generate([Prompt(prompts[0].problem, (3, 4), prompts[0].pictures)], Sampling()))


def test_vllm_gets_one_placeholder_a_picture(prompts):
    """It unfolds them itself; what may not be sampled is biased away."""
    vision = VllmVision(IMAGE, tuple(BANNED), 784, 1 << 20)
    for prompt in prompts:
        batch = vision.inputs(prompt)
        assert batch["prompt_token_ids"].count(IMAGE) == len(prompt.pictures)
        assert [t for t in batch["prompt_token_ids"] if t != IMAGE] == [t for t in prompt.ids if t != IMAGE]
        images = batch.get("multi_modal_data", {"image": []})["image"]
        assert [image.size for image in images] == [(p.width, p.height) for p in prompt.pictures]
    assert vision.bias == dict.fromkeys(BANNED, -100.0)
    with pytest.raises(ValueError, match="has places for 1 pictures, and 0 pictures"):
        vision.inputs(Prompt(Problem(0, "", ""), prompts[0].ids))
