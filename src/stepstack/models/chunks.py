"""Chunks of policies: the layers that a rank of a pipeline holds, and how a part of a microbatch goes through them.

A chunk is a shallow copy of the tower or of the language model with some of its layers, whose ends are made Identity
where they belong to other chunks. The model's own forward runs in each chunk, so masks and rotary tables are its own.

Module "vision" is the tower of Qwen2-VL or Qwen2.5-VL; its items are the distinct pictures of a microbatch, of as many
units as they have patches. Module "text" is the language model; a microbatch is its one item, of as many units as it
has positions, padding included.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stepstack.config import ConfigError
from stepstack.models.dropout import active_dropout
from stepstack.models.lm.policy import Policy, checked_mask
from stepstack.models.vision.policy import FAMILIES, VisionPolicy, by_row, distinct, tower_inputs
from stepstack.planning.pipeline.graph import Chunk, PipelineGraph, PipelineModule, PlanError, SubMicrobatch
from stepstack.planning.pipeline.profile import LayerProfile, ModuleProfile, PipelineProfile
from stepstack.records import Picture

TEXT_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
Inputs = Sequence[tuple[SubMicrobatch, Tensor]]  # parts that a chunk takes in, and their tensors
TensorSpec = tuple[tuple[int, ...], torch.dtype]  # shape and type of what a chunk returns


class TokenInputs(Protocol):
    """The part of a ``batching.collate.TokenMicroBatch`` that chunks read."""

    input_ids: Tensor
    position_ids: Tensor
    pictures: list[tuple[Picture, ...]]
    mask: Tensor | None


@dataclass(frozen=True)
class PolicyCut:
    """A policy that is cut into ``chunks``, as far as a rank holds it.

    ``modules`` are the policy's, ``held`` this rank's chunks by number, and ``learns`` says of every chunk of the
    model whether something in it is trained. ``policy`` has no other parameters than this rank's, under the names that
    they have in the whole. ``tied``: the ranks that have a copy each of the tied embedding, (first, last); None
    where there is one embedding. ``copies``: names of this rank's parameters that are a copy, with the names of their
    originals, which another rank has.
    """

    policy: Policy
    modules: tuple[PipelineModule, ...]
    chunks: tuple[Chunk, ...]
    rank: int
    held: Mapping[int, TextChunk | TowerChunk]
    learns: tuple[bool, ...]
    tied: tuple[int, int] | None
    copies: Mapping[str, str]
    dtypes: Mapping[str, torch.dtype]  # of the parameters of each module

    def check(self, graph: PipelineGraph, micros: Sequence[TokenInputs]) -> None:
        """PlanError for a graph that was not made of these chunks and of the items of these microbatches."""
        if graph.chunks != self.chunks or graph.modules != self.modules:
            raise PlanError("the plan has other chunks than the model was cut into: make it with those of the cut")
        if graph.microbatches != len(micros):
            raise PlanError(f"the plan has {graph.microbatches} microbatches, and the batch {len(micros)}")
        for number, micro in enumerate(micros):
            counts = {"text": 1, "vision": len(distinct(micro.pictures))}
            for module in graph.modules:
                parts = [graph.parts[part] for part in graph.parts_of(number, module.name)]
                items, count = sorted(item for part in parts for item in part.items), counts[module.name]
                if items != list(range(count)):
                    raise PlanError(
                        f"the plan has items {items} of {module.name} for microbatch {number}, which has {count}: make "
                        "it for this batch, with item_sizes"
                    )

    def message(self, chunk: int, micro: TokenInputs, part: SubMicrobatch) -> TensorSpec:
        """Shape and type of what a chunk, on whichever rank, returns for a part of a microbatch. Under autocast the
        tower computes in its type; the language model adds to its embeddings, in theirs."""
        cut, dtype = self.chunks[chunk], self.dtypes[self.chunks[chunk].module]
        text = self.policy.config.get_text_config().hidden_size
        if cut.module == "text":
            return (*micro.input_ids.shape, text), dtype
        device = micro.input_ids.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        policy = _vision(self.policy)
        patches = sum(picture_patches(policy, micro)[item] for item in part.items)
        if cut.end == policy.config.vision_config.depth:
            return (patches // policy.patcher.merge**2, text), dtype
        return (patches, _tower_width(policy)), dtype


def policy_modules(policy: Policy) -> tuple[PipelineModule, ...]:
    """Modules of a policy as a pipeline's graph has them. ConfigError for a policy that cannot be cut."""
    _check(policy)
    text = len(_text(policy).layers)
    if isinstance(policy, VisionPolicy):
        return PipelineModule("vision", len(policy.lm.model.visual.blocks)), PipelineModule("text", text, ("vision",))
    return (PipelineModule("text", text),)


def item_sizes(policy: Policy, micro: TokenInputs) -> dict[str, list[float]]:
    """Sizes of a microbatch's items for each module: patches of its distinct pictures, positions of its texts."""
    sizes = {"text": [float(micro.input_ids.numel())]}
    if isinstance(policy, VisionPolicy):
        sizes = {"vision": [float(count) for count in picture_patches(policy, micro)]} | sizes
    return sizes


def picture_patches(policy: VisionPolicy, micro: TokenInputs) -> list[int]:
    """Patches of each distinct picture of a microbatch."""
    grids = [policy.patcher.picture_grid(picture) for picture in distinct(micro.pictures)]
    return [frames * rows * columns for frames, rows, columns in grids]


def cut(policy: Policy, chunks: Sequence[Chunk], rank: int) -> PolicyCut:
    """Keep of ``policy``, in place, what the chunks of this rank need. Others' layers become Identity, so that names of
    parameters stay those of the whole model.

    ConfigError for a policy that cannot be cut, and for chunks of another model.
    """
    modules = policy_modules(policy)
    for module in modules:
        own = [chunk for chunk in chunks if chunk.module == module.name]
        covered = [layer for chunk in own for layer in range(chunk.begin, chunk.end)]
        if covered != list(range(module.layers)):
            raise ConfigError(
                f"the chunks of module {module.name} have layers {covered}, and {policy.config.model_type} has "
                f"{module.layers}: make the plan for this model"
            )
    if strange := {chunk.module for chunk in chunks} - {module.name for module in modules}:
        raise ConfigError(f"{policy.config.model_type} has no module {', '.join(sorted(strange))} to be cut")
    every = {number: _chunk(policy, chunk) for number, chunk in enumerate(chunks)}
    learns = tuple(bool(one.trained) for one in every.values())
    held = {number: one for number, one in every.items() if chunks[number].rank == rank}
    dtypes = {"text": next(policy.lm.get_input_embeddings().parameters()).dtype}
    if isinstance(policy, VisionPolicy):
        dtypes["vision"] = next(policy.lm.model.visual.parameters()).dtype
    text = [chunk.rank for chunk in chunks if chunk.module == "text"]
    is_tied = policy.lm.get_output_embeddings().weight is policy.lm.get_input_embeddings().weight
    tied = (text[0], text[-1]) if is_tied and text[0] != text[-1] else None
    first = {id(parameter): name for name, parameter in policy.named_parameters()}
    original = {name: first[id(parameter)] for name, parameter in policy.named_parameters(remove_duplicate=False)}
    _empty(policy, held.values())
    copies = {name: original[name] for name, _ in policy.named_parameters() if original[name] != name}
    return PolicyCut(policy, modules, tuple(chunks), rank, held, learns, tied, copies, dtypes)


@contextmanager
def recomputing(chunk: TextChunk | TowerChunk, count: int) -> Iterator[None]:
    """The first ``count`` layers of a chunk, transformers' GradientCheckpointingLayers, keep nothing of a forward pass
    but their input, and do it again in the backward pass."""
    chosen: Sequence[Any] = chunk.layers[:count] if count else ()
    before = [layer.gradient_checkpointing for layer in chosen]
    for layer in chosen:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
    try:
        yield
    finally:
        for layer, on in zip(chosen, before, strict=True):
            layer.gradient_checkpointing = on


class TowerChunk:
    """Some blocks of a vision tower; with the first come the patches' embeddings, with the last the merger. ``trained``
    are the parameters with gradients, ``twice`` those of them that are used at two places: none.

    Between chunks patches go in the order of the pictures: Qwen2.5-VL's tower puts them into windows at its entry, and
    back into order behind its merger.
    """

    def __init__(self, policy: VisionPolicy, chunk: Chunk):
        tower = policy.lm.model.visual
        self.policy = policy
        self.first, self.last = chunk.begin == 0, chunk.end == len(tower.blocks)
        self.body = _shallow(tower, "blocks", chunk)
        if not self.first:
            self.body.patch_embed = nn.Identity()
        if not self.last:
            self.body.merger = MergeNothing(policy.patcher.merge**2)
        if policy.config.model_type == "qwen2_5_vl":
            whole = range(chunk.begin, chunk.end)
            self.body.fullatt_block_indexes = [i - chunk.begin for i in tower.fullatt_block_indexes if i in whole]
        self.layers = list(self.body.blocks)
        self.trained = [parameter for parameter in self.body.parameters() if parameter.requires_grad]
        self.twice: list[nn.Parameter] = []

    @property
    def kept(self) -> list[nn.Module]:
        """Modules with parameters that this chunk needs."""
        return list(self.body.children())

    def __call__(self, micro: TokenInputs, part: SubMicrobatch, inputs: Inputs) -> Tensor:
        """Hidden states [patches, D] of a part's pictures, or their features [image tokens, D] from the last chunk."""
        pictures = distinct(micro.pictures)
        patches = [self.policy.patcher.patches(pictures[item]) for item in part.items]
        pixels, grid = tower_inputs(self.body, patches)
        [hidden] = [pixels] if self.first else [tensor for _, tensor in inputs]
        out = self.body(hidden, grid_thw=grid).pooler_output
        # No view: gradients of inputs and of weights are taken apart, which detaches the output in place.
        return out if self.last else out.reshape(len(hidden), -1).clone()


class MergeNothing(nn.Module):
    """In the place of a merger: patches [S, D] that one would merge stand together as [S / unit, unit * D], whose rows
    the tower puts back into the pictures' order as it would its features."""

    def __init__(self, unit: int):
        super().__init__()
        self.unit = unit

    def forward(self, hidden_SD: Tensor) -> Tensor:
        return hidden_SD.reshape(len(hidden_SD) // self.unit, -1)


class TextChunk:
    """Some layers of a language model; with the first come the embeddings, into which the pictures' features are put,
    with the last the norm and the head. ``trained`` are the parameters with gradients, ``twice`` those of them that are
    used at two places: a tied embedding, where both ends are in this chunk."""

    def __init__(self, policy: Policy, chunk: Chunk):
        text = _text(policy)
        self.policy = policy
        self.first, self.last = chunk.begin == 0, chunk.end == len(text.layers)
        self.body = _shallow(text, "layers", chunk)
        self.body.embed_tokens = nn.Identity()
        if not self.last:
            self.body.norm = nn.Identity()
        self.layers = list(self.body.layers)
        self.ends = [policy.lm.get_input_embeddings()] if self.first else []
        self.ends += [policy.lm.get_output_embeddings()] if self.last else []
        parameters = {id(p): p for module in self.kept for p in module.parameters() if p.requires_grad}
        self.trained = list(parameters.values())
        embedding = policy.lm.get_input_embeddings().weight
        tied = self.first and self.last and embedding is policy.lm.get_output_embeddings().weight
        self.twice = [embedding] if tied and embedding.requires_grad else []

    @property
    def kept(self) -> list[nn.Module]:
        """Modules with parameters that this chunk needs."""
        return [*self.body.children(), *self.ends]

    def __call__(self, micro: TokenInputs, part: SubMicrobatch, inputs: Inputs) -> Tensor:
        """Hidden states [B, T, D]. ``inputs``: those from the chunk before, or for the first chunk the features of
        all pictures, in parts."""
        if self.first:
            hidden_BTD = self.policy.embedded(micro.input_ids, self._features(micro, inputs) if inputs else None)
        else:
            [(_, hidden_BTD)] = inputs
        return self.body(
            inputs_embeds=hidden_BTD,
            position_ids=self.policy.model_positions(micro.input_ids, micro.position_ids, micro.pictures),
            attention_mask=checked_mask(self.policy.config, micro.mask),
            use_cache=False,
        ).last_hidden_state

    def _features(self, micro: TokenInputs, inputs: Inputs) -> Tensor:
        policy = _vision(self.policy)
        once, sizes = distinct(micro.pictures), picture_patches(policy, micro)
        of: dict[Picture, Tensor] = {}
        for part, features_RD in inputs:
            counts = [sizes[item] // policy.patcher.merge**2 for item in part.items]
            of |= zip((once[item] for item in part.items), features_RD.split(counts), strict=True)
        return by_row(of, micro.pictures)

    def scorer(self, hidden_BTD: Tensor) -> Callable[..., tuple[Tensor, Tensor]]:
        """The policy from here on: a function with the arguments of its forward, for the last hidden states of these
        inputs."""

        def scored(
            input_ids: Tensor,
            position_ids: Tensor,
            select: Tensor,
            labels: Tensor,
            temperature: float = 1.0,
            attention_mask: Tensor | None = None,
            pictures: Sequence[Sequence[Picture]] = (),
        ) -> tuple[Tensor, Tensor]:
            states = self.policy.mask_states(input_ids, position_ids, select)
            return self.policy.scored(hidden_BTD.flatten(0, 1)[select], labels, temperature, states)

        return scored


# -- cutting -----------------------------------------------------------------------------------------------------------


def _check(policy: Policy) -> None:
    kind, family = type(policy), policy.config.model_type
    known = {Policy: TEXT_FAMILIES, VisionPolicy: FAMILIES}.get(kind, ())
    if family not in known:
        raise ConfigError(
            f"a {kind.__name__} of {family} cannot be cut into a pipeline: take a Policy of "
            f"{', '.join(TEXT_FAMILIES)}, a VisionPolicy of {', '.join(FAMILIES)}, or train without pipeline"
        )
    if adapters := [name for name, _ in policy.named_parameters() if ".lora_" in name]:
        raise ConfigError(f"a policy with adapters ({adapters[0]}) cannot be cut into a pipeline: set lora to null")
    for dropout in active_dropout(policy, policy.lm):
        raise ConfigError(f"{dropout} cannot be drawn as in one process by the ranks of a pipeline: set it to 0")


def _vision(policy: Policy) -> VisionPolicy:
    assert isinstance(policy, VisionPolicy)
    return policy


def _text(policy: Policy) -> Any:
    return policy.lm.model.language_model if isinstance(policy, VisionPolicy) else policy.lm.base_model


def _tower_width(policy: VisionPolicy) -> int:
    config = policy.config.vision_config
    return config.embed_dim if policy.config.model_type == "qwen2_vl" else config.hidden_size


def _chunk(policy: Policy, chunk: Chunk) -> TextChunk | TowerChunk:
    return TowerChunk(_vision(policy), chunk) if chunk.module == "vision" else TextChunk(policy, chunk)


def _shallow(model: Any, layers: str, chunk: Chunk) -> Any:
    """A copy of a model with the chunk's layers alone, which shares all modules that are left."""
    copied = copy.copy(model)
    copied._modules = dict(model._modules)
    setattr(copied, layers, nn.ModuleList(list(getattr(model, layers))[chunk.begin : chunk.end]))
    if kinds := model.config.to_dict().get("layer_types"):
        copied.config = copy.copy(model.config)
        copied.config.layer_types = kinds[chunk.begin : chunk.end]
    return copied


def _empty(policy: Policy, held: Any) -> None:
    """Identity in the place of every module that holds parameters and is in no chunk of this rank."""
    kept = {id(module) for one in held for top in one.kept for module in top.modules()}

    def walk(parent: nn.Module) -> None:
        for name, child in parent.named_children():
            if id(child) in kept:
                continue
            if isinstance(child, nn.ModuleList) or any(id(module) in kept for module in child.modules()):
                walk(child)
            elif any(True for _ in child.parameters()):
                setattr(parent, name, nn.Identity())

    walk(policy)


def flops_profile(policy: Policy) -> PipelineProfile:
    """Seconds in proportion to floating-point operations, 2 a parameter and unit of size in a forward pass and as many
    again for each gradient, as if at 1 TFLOP/s. It holds no bytes and no link."""
    lm = policy.lm
    text = _text(policy)
    layer, head = _parameters(text.layers[0]), lm.get_output_embeddings().weight.numel()
    modules = [ModuleProfile(name="text", layers=len(text.layers), layer=_flops(layer), exit=_flops(head))]
    if isinstance(policy, VisionPolicy):
        tower, merge = lm.model.visual, policy.patcher.merge**2
        vision = ModuleProfile(
            name="vision",
            layers=len(tower.blocks),
            layer=_flops(_parameters(tower.blocks[0])),
            entry=_flops(_parameters(tower.patch_embed)),
            exit=_flops(_parameters(tower.merger) / merge),  # it sees a unit for so many patches
        )
        modules = [vision, replace(modules[0], reads=("vision",))]
    kind = policy.config.model_type
    return PipelineProfile(model=kind, device="by numbers of parameters", modules=tuple(modules))


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _flops(parameters: float) -> LayerProfile:
    once, none = (0.0, 2e-12 * parameters), (0.0, 0.0)
    return LayerProfile(
        sizes=(0, 1), forward=once, backward=(0.0, 2 * once[1]), input=once, weight=once, saved=none, kept=none
    )
