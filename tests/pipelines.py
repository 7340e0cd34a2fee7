"""What tests of pipelines need: tiny policies with pictures, ragged microbatches, plans drawn at random."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from stepstack.batching.collate import TokenMicroBatch, collate
from stepstack.batching.rows import Row
from stepstack.loops.supervised import likelihood
from stepstack.models.chunks import item_sizes, policy_modules
from stepstack.models.lm import tiny
from stepstack.models.lm.policy import Policy
from stepstack.models.vision.policy import ImagePatcher, VisionPolicy
from stepstack.planning.pipeline.graph import Action, Chunk, PipelineGraph, PipelineModule, PipelinePlan, SubMicrobatch
from tests import tools

TOKENIZER = tiny.tokenizer(special=(*tiny.CHAT, *tiny.VISION))
BANNED = [TOKENIZER.get_vocab()[name] for name in tiny.VISION]
START, END, IMAGE, VIDEO = BANNED
PATCH = 4
SIZES = ((16, 16), (24, 16), (8, 32), (40, 24))  # of pictures in pixels; windows are 16 pixels wide


@dataclass(frozen=True)
class Noise:
    """A picture of noise."""

    seed: int
    width: int
    height: int

    def image(self) -> Image.Image:
        drawn = np.random.default_rng(self.seed).integers(0, 256, (self.height, self.width, 3), dtype=np.uint8)
        return Image.fromarray(drawn)


def qwen2_5_vl(layers: int = 4, depth: int = 4) -> VisionPolicy:
    """Windows are smaller than pictures, and every other block attends to the whole picture."""
    lm = tiny.qwen2_5_vl(
        TOKENIZER, hidden=48, layers=layers, intermediate=64, tower=32, depth=depth, patch=PATCH, seed=0
    )
    tower = lm.model.visual
    tower.config.window_size = tower.window_size = 4 * PATCH
    tower.config.fullatt_block_indexes = tower.fullatt_block_indexes = list(range(1, depth, 2))
    return VisionPolicy(tools.perturbed(lm, 0.1).train(), ImagePatcher(tiny.image_processor(PATCH)), BANNED)


def qwen2_vl(layers: int = 4, depth: int = 3) -> VisionPolicy:
    text = tiny.qwen2_5_vl(TOKENIZER, hidden=48, layers=layers, seed=0).config.text_config.to_dict()
    del text["model_type"]
    vision = {"depth": depth, "embed_dim": 32, "hidden_size": 48, "num_heads": 4, "mlp_ratio": 2, "patch_size": PATCH}
    ids = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END}
    torch.manual_seed(0)
    lm = Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **ids)
    )
    return VisionPolicy(tools.perturbed(lm, 0.1).train(), ImagePatcher(tiny.image_processor(PATCH)), BANNED)


def qwen2(layers: int = 4) -> Policy:
    """Embeddings are tied."""
    lm = tiny.qwen2(len(TOKENIZER), hidden=48, layers=layers, intermediate=64, seed=0)
    return Policy(tools.perturbed(lm, 0.1).train())


POLICIES = {"qwen2_5_vl": qwen2_5_vl, "qwen2_vl": qwen2_vl, "qwen2": qwen2}


def microbatch(policy: Policy, pictures: Sequence[int], rng: random.Random, *, pack: bool) -> TokenMicroBatch:
    """A row with so many pictures for each number; lengths, sizes and loss weights are drawn."""
    rows = []
    for number, count in enumerate(pictures):
        shown = tuple(Noise(rng.randrange(9), *rng.choice(SIZES)) for _ in range(count))
        ids = [rng.randrange(10, 200) for _ in range(rng.randrange(1, 6))]
        for picture in shown if isinstance(policy, VisionPolicy) else ():
            ids += [START, *[IMAGE] * policy.patcher.tokens((picture.width, picture.height)), END]
        answer = tuple(rng.randrange(10, 200) for _ in range(rng.randrange(2, 12)))
        weights = tuple(rng.choice((0.0, 0.5, 1.0)) for _ in answer[1:])
        rows.append(Row(number, tuple(ids), answer, pictures=shown, weights=(1.0, *weights)))
    made = collate(rows, pack, "cpu")
    if not isinstance(policy, VisionPolicy):
        made.pictures = []
    return made


def batch(policy: Policy, seed: int, *, pack: bool = True, count: int = 4) -> list[TokenMicroBatch]:
    """Microbatches of one to three rows with none to two pictures each, one of them without any picture."""
    rng = random.Random(seed)
    shapes = [[rng.randrange(3) for _ in range(rng.randrange(1, 4))] for _ in range(count - 1)]
    return [microbatch(policy, shape, rng, pack=pack) for shape in ([0], *shapes)]


def spread(modules: Sequence[PipelineModule], ranks: int, segments: int = 1) -> tuple[Chunk, ...]:
    """Every module in ``ranks * segments`` chunks, or one a layer where it has fewer; chunk j on rank j % ranks, and
    the last chunk of a module on the last rank."""
    found = []
    for module in modules:
        count = min(ranks * segments, module.layers)
        ends = [module.layers * number // count for number in range(count + 1)]
        found += [
            Chunk(module.name, ends[number], ends[number + 1], (ranks - count + number) % ranks)
            for number in range(count)
        ]
    return tuple(found)


def graph_of(
    policy: Policy,
    micros: Sequence[TokenMicroBatch],
    chunks: tuple[Chunk, ...],
    most: int = 100,
    split: frozenset[int] = frozenset(),
    modules: tuple[PipelineModule, ...] | None = None,
) -> PipelineGraph:
    """Every module's items in parts of at most ``most``."""
    parts = []
    for number, micro in enumerate(micros):
        for module, sizes in item_sizes(policy, micro).items():
            for at in range(0, len(sizes), most):
                items = tuple(range(at, min(at + most, len(sizes))))
                parts.append(SubMicrobatch(number, module, items, sum(sizes[item] for item in items)))
    return PipelineGraph(modules or policy_modules(policy), chunks, tuple(parts), split)


def drawn(graph: PipelineGraph, seed: int, *, ordered: bool = False) -> PipelinePlan:
    """A valid plan: all passes in a random order in time, split by rank. ``ordered``: gradients of each chunk are made
    in the order of parts, as one process makes them."""
    rng, done = random.Random(seed), set[Action]()
    left = list(graph.actions)
    order: list[list[Action]] = [[] for _ in range(graph.ranks)]
    while left:
        ready = [action for action in left if all(need in done for need in graph.needs(action))]
        if ordered:
            ready = [a for a in ready if a.kind == "F" or not any(o[:2] == a[:2] and o.part < a.part for o in left)]
        action = rng.choice(ready)
        left.remove(action)
        done.add(action)
        order[graph.rank_of(action)].append(action)
    return PipelinePlan(graph, tuple(map(tuple, order)))


def gradients(
    policy: Policy,
    micros: Sequence[TokenMicroBatch],
    weight: float,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> dict[str, Tensor]:
    """Gradients of one process, by the names of parameters."""
    for micro in micros:
        with autocast():
            total = likelihood(policy, micro).total * weight
        total.backward()
    return taken(policy)


def taken(policy: Policy) -> dict[str, Tensor]:
    """Gradients of a policy's parameters, which are then gone."""
    found = {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}
    for parameter in policy.parameters():
        parameter.grad = None
    return found


def errors(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, float]:
    """The largest difference in each gradient, by the largest of its tensor."""
    assert found.keys() == wanted.keys(), found.keys() ^ wanted.keys()
    return {name: float((found[name] - wanted[name]).abs().max() / wanted[name].abs().max()) for name in wanted}


def check(found: dict[str, Tensor], wanted: dict[str, Tensor], *, exact: bool = False) -> float:
    """The largest error, at most 1e-6. ``exact``: none, but in a tied embedding, whose two gradients one process adds
    microbatch by microbatch, and a pipeline at the end."""
    by_name = errors(found, wanted)
    worst = max(by_name, key=lambda name: by_name[name])
    assert by_name[worst] <= 1e-6, (worst, by_name[worst])
    if exact:
        tied = "lm_head.weight" not in {name.rpartition("lm.")[2] for name in wanted}
        wrong = {name: one for name, one in by_name.items() if one and not (tied and "embed_tokens" in name)}
        assert not wrong, wrong
    return by_name[worst]
