"""Times of a model's layers on this device, by which its pipelines are planned (`stepstack profile pipeline`).

One layer of each kind is measured alone, with the inputs that the model's own forward pass gives it (rotary tables,
masks, borders of pictures), and so is what stands before the first and after the last layer. Backward is run whole, and
as the gradients of inputs and of weights apart by torch's own functions for pipelines.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.distributed.pipelining._backward import stage_backward_input, stage_backward_weight
from transformers import PreTrainedModel

from stepstack.config import ConfigError
from stepstack.models.lm.policy import Policy
from stepstack.models.video.dsv.speed import device_name
from stepstack.planning.pipeline.profile import LayerProfile, ModuleProfile, PassCost, PipelineProfile
from stepstack.planning.timing import Link
from stepstack.report.provenance import provenance

FAMILIES = ("qwen2", "qwen2_vl", "qwen2_5_vl")
WARM_UP = 2  # rounds that do not count

Call = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes at which layers are measured: ``tokens`` of a row of text, and numbers of ``pictures`` of ``picture``
    (width, height) pixels."""

    tokens: tuple[int, ...]
    pictures: tuple[int, ...]
    picture: tuple[int, int]


@dataclass(frozen=True, slots=True)
class MeasuredBlock:
    """A part of a model alone. ``input``: what it takes in; gradients of it are wanted unless it is an ``entry``, whose
    input are pixels or the numbers of tokens. ``trained``: whether its weights have gradients."""

    call: Call
    input: Tensor
    parameters: tuple[nn.Parameter, ...]
    trained: bool
    entry: bool = False


def measure(
    lm: PreTrainedModel,
    sizes: Sizes,
    device: torch.device,
    *,
    autocast: bool = False,
    rounds: int = 5,
    link: Link | None = None,
    name: str | None = None,
) -> PipelineProfile:
    """Profile of a model, of which only the config is read: it may have no memory. ``autocast``: compute in bfloat16
    as training with mixed precision does. ConfigError for a family whose layers nobody has looked at, and for sizes
    that it cannot take."""
    config = lm.config
    if config.model_type not in FAMILIES:
        raise ConfigError(
            f"the model is a {config.model_type}: pipelines know {', '.join(FAMILIES)}; name one of these"
        )
    check(lm, sizes)
    small, kinds = shallow(lm, device)
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        modules = [_text(small, kinds["text"], sizes, device, rounds)]
        if "vision" in kinds:
            modules.insert(0, _vision(small, kinds["vision"], sizes, device, rounds))
    return PipelineProfile(
        model=name or config.model_type,
        device=device_name(device),
        modules=tuple(modules),
        link=link,
        provenance=provenance(),
    )


def check(lm: PreTrainedModel, sizes: Sizes) -> None:
    """ConfigError for sizes that the model cannot take, or too few to draw a line through."""
    for option, values in (("--tokens", sizes.tokens), ("--pictures", sizes.pictures)):
        if len(set(values)) < 2 or min(values) < 1:
            raise ConfigError(f"{option} {' '.join(map(str, values))}: give two different sizes above 0 or more")
    most = lm.config.get_text_config().max_position_embeddings
    if max(sizes.tokens) > most:
        raise ConfigError(f"--tokens {max(sizes.tokens)}: the model takes {most} at most; give smaller ones")
    if is_visual(lm):
        cfg = lm.config.vision_config
        side = cfg.patch_size * cfg.spatial_merge_size
        if min(sizes.picture) < side or any(edge % side for edge in sizes.picture):
            width, height = sizes.picture
            raise ConfigError(f"--picture {width}x{height}: sides must be multiples of {side} for this model")


def is_visual(lm: PreTrainedModel) -> bool:
    """Whether the model has a vision tower."""
    return bool(lm.config.model_type != "qwen2")


def shallow(lm: PreTrainedModel, device: torch.device) -> tuple[PreTrainedModel, dict[str, list[int]]]:
    """The model on the device with one layer of each kind in each module, and how many of each kind the whole one has.

    Kinds are full and sliding attention of text, windows and whole pictures of Qwen2.5-VL's tower.
    """
    config = copy.deepcopy(lm.config)
    text = config.get_text_config()
    types = list(text.layer_types)
    kinds = {"text": [types.count(kind) for kind in dict.fromkeys(types)]}
    text.layer_types, text.num_hidden_layers = list(dict.fromkeys(types)), len(kinds["text"])
    if is_visual(lm):
        vision = config.vision_config
        kinds["vision"] = [vision.depth]
        if config.model_type == "qwen2_5_vl":
            full = len(set(vision.fullatt_block_indexes) & set(range(vision.depth)))
            kinds["vision"] = [count for count in (full, vision.depth - full) if count]
            vision.fullatt_block_indexes = [0] if full else []
        vision.depth = len(kinds["vision"])
    with device:
        small = type(lm)._from_config(config, attn_implementation=config._attn_implementation, dtype=lm.dtype)
    if is_visual(lm):
        small.model.visual.requires_grad_(any(p.requires_grad for p in lm.model.visual.parameters()))
    return small, kinds


def describe(profile: PipelineProfile) -> Iterator[str]:
    """Lines for people: each module's layers at the largest size, whether a split of backward pays, and the link."""
    for module in profile.modules:
        size = module.layer.sizes[-1]
        one = module.layer.at(size)
        split = f"{(one.input + one.weight) / one.backward:.2f} of it apart" if one.backward else "frozen"
        yield (
            f"{module.name}, {module.layers} layers, at {size:g} {module.unit}: forward {1e3 * one.forward:.2f} ms, "
            f"backward {1e3 * one.backward:.2f} ms ({split}), {one.saved / 2**20:.2f} MiB kept"
        )
    yield "link: gloo between two processes here" if profile.link else "link: not measured, there is one device"


# -- modules --------------------------------------------------------------------------------------------------------


def _text(lm: Any, counts: Sequence[int], sizes: Sizes, device: torch.device, rounds: int) -> ModuleProfile:
    """Language model: rows of tokens, embedding, norm and head with the loss at every position."""
    body = lm.model.language_model if is_visual(lm) else lm.model
    policy, embed = Policy(lm), lm.get_input_embeddings()
    rows: dict[str, list[PassCost]] = {"layer": [], "entry": [], "exit": []}
    hidden_bytes = 0.0
    for tokens in sorted(set(sizes.tokens)):
        ids_BT = torch.randint(2, lm.config.get_text_config().vocab_size, (1, tokens), device=device)
        embedded_BTD = embed(ids_BT).detach()
        hidden_bytes = embedded_BTD.nbytes / tokens

        def forward(embedded_BTD: Tensor = embedded_BTD) -> None:
            body(inputs_embeds=embedded_BTD, use_cache=False)

        def loss(hidden_BTD: Tensor, labels: Tensor = ids_BT[0]) -> Tensor:
            return -policy.scored(body.norm(hidden_BTD).flatten(0, 1), labels, 1.0)[0].mean()

        layers = [captured(layer, forward) for layer in body.layers]
        rows["layer"].append(mean([cost(block, rounds, device) for block in layers], counts))
        rows["entry"].append(
            cost(MeasuredBlock(embed, ids_BT, tuple(embed.parameters()), True, entry=True), rounds, device)
        )
        ends = (*body.norm.parameters(), *lm.get_output_embeddings().parameters())
        rows["exit"].append(cost(MeasuredBlock(loss, embedded_BTD, ends, True), rounds, device))
    return ModuleProfile(
        name="text",
        layers=sum(counts),
        reads=("vision",) if is_visual(lm) else (),
        unit="tokens",
        hidden_bytes=hidden_bytes,
        layer_parameters=parameters(body.layers, counts),
        layer=lines(sorted(set(sizes.tokens)), rows["layer"]),
        entry=lines(sorted(set(sizes.tokens)), rows["entry"]),
        exit=lines(sorted(set(sizes.tokens)), rows["exit"]),
    )


def _vision(lm: Any, counts: Sequence[int], sizes: Sizes, device: torch.device, rounds: int) -> ModuleProfile:
    """Vision tower: pictures by their patches, embedding of patches, and merging into what the text takes."""
    tower, cfg = lm.model.visual, lm.config.vision_config
    width, height = (edge // cfg.patch_size for edge in sizes.picture)
    inputs = cfg.in_channels * cfg.temporal_patch_size * cfg.patch_size**2
    rows: dict[str, list[PassCost]] = {"layer": [], "entry": [], "exit": []}
    patches = [pictures * width * height for pictures in sorted(set(sizes.pictures))]
    hidden_bytes = output_bytes = 0.0
    for pictures, size in zip(sorted(set(sizes.pictures)), patches, strict=True):
        pixels = torch.randn(size, inputs, device=device, dtype=lm.dtype)
        grid = torch.tensor([[1, height, width]] * pictures, device=device)

        def forward(pixels: Tensor = pixels, grid: Tensor = grid) -> None:
            tower(pixels, grid_thw=grid)

        layers = [captured(layer, forward) for layer in tower.blocks]
        entry, merger = captured(tower.patch_embed, forward, entry=True), captured(tower.merger, forward)
        rows["layer"].append(mean([cost(block, rounds, device) for block in layers], counts))
        rows["entry"].append(cost(entry, rounds, device))
        rows["exit"].append(cost(merger, rounds, device))
        with torch.no_grad():
            hidden_bytes, output_bytes = merger.input.nbytes / size, merger.call(merger.input).nbytes / size
    return ModuleProfile(
        name="vision",
        layers=sum(counts),
        unit="patches",
        layer_parameters=parameters(tower.blocks, counts),
        hidden_bytes=hidden_bytes,
        output_bytes=output_bytes,
        layer=lines(patches, rows["layer"]),
        entry=lines(patches, rows["entry"]),
        exit=lines(patches, rows["exit"]),
    )


def captured(block: nn.Module, forward: Callable[[], None], entry: bool = False) -> MeasuredBlock:
    """A module with the inputs that the model's forward pass gives it."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    hook = block.register_forward_pre_hook(lambda _, args, named: calls.append((args, named)), with_kwargs=True)
    with torch.no_grad():
        forward()
    hook.remove()
    [((hidden, *others), named)] = calls
    parameters = tuple(block.parameters())
    trained = any(parameter.requires_grad for parameter in parameters)
    return MeasuredBlock(lambda x: block(x, *others, **named), hidden.detach(), parameters, trained, entry)


def mean(costs: Sequence[PassCost], counts: Sequence[int]) -> PassCost:
    """Mean of the kinds of a module's layers, each as often as it has them."""
    weighted = zip(*([value * count for value in cost] for cost, count in zip(costs, counts, strict=True)), strict=True)
    return PassCost(*(sum(values) / sum(counts) for values in weighted))


def parameters(layers: Sequence[nn.Module], counts: Sequence[int]) -> float:
    """Mean number of parameters of a layer."""
    numbers = [sum(parameter.numel() for parameter in layer.parameters()) for layer in layers]
    return sum(number * count for number, count in zip(numbers, counts, strict=True)) / sum(counts)


def lines(sizes: Sequence[int], costs: Sequence[PassCost]) -> LayerProfile:
    """Profile through measured points."""
    columns = {key: tuple(getattr(cost, key) for cost in costs) for key in PassCost._fields}
    return LayerProfile(sizes=tuple(map(float, sizes)), **columns)


# -- measuring ------------------------------------------------------------------------------------------------------


class SavedBytes:
    """Bytes that autograd keeps beside the parameters, each storage once, for as long as a node holds it."""

    class Holder:
        __slots__ = ("__weakref__", "tensor")

        def __init__(self, tensor: Tensor):
            self.tensor = tensor

    def __init__(self, parameters: Sequence[nn.Parameter]):
        self.parameters = {parameter.untyped_storage().data_ptr() for parameter in parameters}
        self.holders: WeakSet[SavedBytes.Holder] = WeakSet()
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda holder: holder.tensor)

    def pack(self, tensor: Tensor) -> Holder:
        holder = self.Holder(tensor.detach())
        self.holders.add(holder)
        return holder

    def total(self) -> int:
        """Bytes held now."""
        found = {}
        for holder in self.holders:
            storage = holder.tensor.untyped_storage()
            if storage.data_ptr() not in self.parameters:
                found[storage.data_ptr()] = storage.nbytes()
        return sum(found.values())


def cost(block: MeasuredBlock, rounds: int, device: torch.device) -> PassCost:
    """Medians of the seconds of a block's passes over ``rounds``, and the bytes that it keeps."""
    if not block.trained:
        forward = [timed(lambda: _without_gradient(block), device)[0] for _ in range(WARM_UP + rounds)]
        return PassCost(forward=median(forward[WARM_UP:]))
    seconds = [_round(block, device) for _ in range(WARM_UP + rounds)][WARM_UP:]
    times = {key: median(one[key] for one in seconds) for key in seconds[0]}
    saved, kept = _bytes(block)
    if block.entry:  # nobody wants gradients of its input: all of its backward pass is that of weights
        times |= {"input": 0.0, "weight": times["backward"]}
    return PassCost(**times, saved=float(saved), kept=float(kept))


def timed(run: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Seconds of a call on the device, and its result."""
    _synchronize(device)
    began = time.perf_counter()
    result = run()
    _synchronize(device)
    return time.perf_counter() - began, result


def _round(block: MeasuredBlock, device: torch.device) -> Mapping[str, float]:
    """Seconds of each pass once."""
    forward, output = timed(lambda: block.call(_input(block)), device)
    gradient = torch.ones_like(output)
    seconds = {"forward": forward, "backward": timed(lambda: output.backward(gradient), device)[0]}
    if not block.entry:
        taken = _input(block)
        again = block.call(taken).clone()  # a view could not be detached in place, which is what follows
        seconds["input"], (_, groups) = timed(lambda: _input_pass(again, taken, gradient, block), device)
        seconds["weight"], _ = timed(lambda: stage_backward_weight(iter(block.parameters), groups), device)
    return seconds


def _bytes(block: MeasuredBlock) -> tuple[int, int]:
    """Bytes kept after the forward pass, and after the gradients of inputs, those for the weights included."""
    saved = SavedBytes(block.parameters)
    taken = _input(block)
    with saved.hooks:
        output = block.call(taken)
    after_forward = saved.total()
    if block.entry:
        return after_forward, after_forward
    output = output.clone()
    _, groups = _input_pass(output, taken, torch.ones_like(output), block)
    gradients = [grad for group in groups for grads in group.get("grads") or () for grad in grads if grad is not None]
    storages = {g.untyped_storage().data_ptr(): g.untyped_storage().nbytes() for g in gradients}
    return after_forward, saved.total() + sum(storages.values())


def _input_pass(
    output: Tensor, taken: Tensor, gradient: Tensor, block: MeasuredBlock
) -> tuple[Any, list[dict[str, Any]]]:
    return stage_backward_input([output], [gradient], [taken], iter(block.parameters))


def _input(block: MeasuredBlock) -> Tensor:
    return block.input if block.entry else block.input.detach().clone().requires_grad_()


def _without_gradient(block: MeasuredBlock) -> Tensor:
    with torch.no_grad():
        return block.call(block.input)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
