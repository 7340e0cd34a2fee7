"""Profiles and batches of pipelines: the 37B model of PipeWeaver's example, its drifting batches, and random cases."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from stepstack.planning.pipeline.graph import PipelineBatch, PipelineGraph
from stepstack.planning.pipeline.partition import chunks, graph_of
from stepstack.planning.pipeline.profile import LayerProfile, ModuleProfile, PipelineProfile
from stepstack.planning.timing import Link

PICTURE, PACK = 169, 8192  # tokens
DRIFT = ((0, 8), (0, 32), (24, 48), (0, 4), (8, 24), (40, 48), (0, 16), (0, 48))  # pictures a microbatch, by batch


def even_layer(seconds: float, size: float) -> LayerProfile:
    """A layer of F : B = 1 : 2 and I = W, ``seconds`` forward and backward at a size, in proportion elsewhere. It saves
    a byte a unit of size, and half of one waits for W."""
    once, twice = (0.0, seconds / 3), (0.0, 2 * seconds / 3)
    return LayerProfile(
        sizes=(0, size), forward=once, backward=twice, input=once, weight=once, saved=(0, size), kept=(0, size / 2)
    )


VLM_37B = PipelineProfile(
    model="ViT 5B and LM 32B",
    device="H800, arXiv 2504.14145",
    modules=(
        ModuleProfile(name="vision", layers=64, layer=even_layer(6.75e-3, 8 * PICTURE), layer_parameters=78e6),
        ModuleProfile(
            name="text", layers=64, reads=("vision",), layer=even_layer(10.5e-3, PACK), layer_parameters=500e6
        ),
    ),
)
TEXT_ONLY = PipelineProfile(
    model="LM", device="none", modules=(ModuleProfile(name="text", layers=64, layer=even_layer(3, 1)),)
)


def pictures(random: Random, microbatches: int, low: int, high: int) -> PipelineBatch:
    """Microbatches of one pack of text and ``low`` to ``high`` pictures."""
    return [{"vision": [PICTURE] * random.randint(low, high), "text": [PACK]} for _ in range(microbatches)]


def drifting(microbatches: int, seed: int = 11) -> list[PipelineBatch]:
    """Eight batches whose pictures become more and fewer."""
    random = Random(seed)
    return [pictures(random, microbatches, low, high) for low, high in DRIFT]


def texts(microbatches: int) -> PipelineBatch:
    """Microbatches of one text of size 1."""
    return [{"text": [1]} for _ in range(microbatches)]


@dataclass(frozen=True)
class Case:
    """A profile, a graph and priorities that were drawn."""

    profile: PipelineProfile
    graph: PipelineGraph
    priorities: dict[tuple[int, str], float]


def random_case(seed: int) -> Case:
    """One to three modules that read each other in some way, on 1 to 4 ranks, 1 to 7 microbatches with parts of unequal
    sizes, some chunks split, some links slow, and priorities in no order."""
    random = Random(seed)
    ranks, names = random.randint(1, 4), ["audio", "vision", "text"][-random.randint(1, 3) :]
    segments = {name: random.randint(1, 3) for name in names}
    modules = []
    for number, name in enumerate(names):
        reads = tuple(earlier for earlier in names[:number] if name == "text" or random.random() < 0.5)
        modules.append(
            ModuleProfile(
                name=name,
                layers=ranks * segments[name] + random.randrange(4),
                reads=reads,
                layer=_random_layer(random),
                exit=_random_layer(random) if random.random() < 0.3 else None,
                hidden_bytes=random.choice([0, 1]),
                output_bytes=random.choice([0, 2]),
            )
        )
    link = Link(bytes=(0, 1), seconds=(0, random.choice([0.01, 1]))) if random.random() < 0.4 else None
    profile = PipelineProfile(model="drawn", device="none", modules=tuple(modules), link=link)
    sizes = [1, 2, 3, 5]
    batch = [
        {name: [random.choice(sizes) for _ in range(random.randint(name == "text", 4))] for name in names}
        for _ in range(random.randint(1, 7))
    ]
    for microbatch in batch:  # who is read has readers with items
        for number, name in reversed(list(enumerate(names))):
            readers = [other for other in modules[number + 1 :] if name in other.reads]
            if not all(microbatch[reader.name] for reader in readers):
                microbatch[name] = []
    cut = chunks(profile, ranks, segments)
    most = {name: random.randint(1, 4) for name in names if random.random() < 0.7}
    split = frozenset(chunk for chunk in range(len(cut)) if random.random() < random.choice([0, 0.5, 1]))
    graph = graph_of(profile, batch, cut, most, split)
    pairs = sorted({(part.microbatch, part.module) for part in graph.parts})
    return Case(profile, graph, {pair: random.random() for pair in pairs})


def _random_layer(random: Random) -> LayerProfile:
    """A layer in proportion to size: times and bytes from none to some, in whole numbers and not."""

    def line(values: list[float]) -> tuple[float, float]:
        return (0.0, random.choice(values))

    return LayerProfile(
        sizes=(0, 1),
        forward=line([1, 2, 0.7]),
        backward=line([2, 1, 1.3]),
        input=line([1, 0.9]),
        weight=line([1, 0.4, 0]),
        saved=line([1, 3, 0.3, 0]),
        kept=line([0, 0.5, 1]),
    )
