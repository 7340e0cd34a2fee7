"""Cuts of models and microbatches, the published rule, the search over sample batches, and what allows no cut."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepstack.planning.pipeline.graph import PlanError
from stepstack.planning.pipeline.partition import chunks, graph_of, parts, published, searched
from stepstack.planning.pipeline.profile import LayerProfile, ModuleProfile, PipelineProfile
from stepstack.planning.pipeline.split import seconds_in_order
from tests.pipeline_batches import TEXT_ONLY, VLM_37B, drifting, even_layer, texts


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(0, 9))
def test_chunks_are_consecutive_equal_and_dealt_to_ranks_in_turn(ranks, vision, text, more):
    modules = tuple(
        replace(module, layers=ranks * count + more)
        for module, count in zip(VLM_37B.modules, (vision, text), strict=True)
    )
    profile = replace(VLM_37B, modules=modules)
    cut = chunks(profile, ranks, {"vision": vision, "text": text})
    for name, count in (("vision", vision), ("text", text)):
        mine = [chunk for chunk in cut if chunk.module == name]
        assert [chunk.rank for chunk in mine] == [number % ranks for number in range(ranks * count)]
        assert {chunk.end - chunk.begin for chunk in mine} <= {1 + more // len(mine), -(-more // len(mine)) + 1}
    graph_of(profile, [{"vision": [1], "text": [1]}], cut, {})  # the graph checks that they follow each other


def test_the_ends_of_a_module_take_the_place_of_layers():
    """An exit of 3 layers' seconds: against all cuts of 11 layers into 4."""
    module = ModuleProfile(name="text", layers=11, layer=even_layer(3, 1), exit=even_layer(9, 1))
    cut = chunks(PipelineProfile(model="m", device="d", modules=(module,)), 4, {"text": 1})
    layers = [chunk.end - chunk.begin for chunk in cut]

    def slowest(sizes: list[int]) -> float:
        return max(*sizes[:-1], sizes[-1] + 3)

    every = [[b - a for a, b in zip((0, *ends), (*ends, 11), strict=True)] for ends in combinations(range(1, 11), 3)]
    assert slowest(layers) == min(map(slowest, every)) == 4
    assert sum(layers) == 11


@given(st.integers(0, 40), st.integers(1, 12))
def test_parts_are_near_equal_and_hold_each_item_once(count, most):
    sizes = [float(1 + item % 3) for item in range(count)]
    found = parts([{"vision": sizes, "text": [5]}], {"vision": most})
    mine = [part for part in found if part.module == "vision"]
    assert len(mine) == -(-count // most)
    assert [item for part in mine for item in part.items] == list(range(count))
    assert max(Counter(len(part.items) for part in mine), default=0) <= most
    assert len({len(part.items) for part in mine}) <= 2
    assert sum(part.size for part in mine) == sum(sizes)
    assert [part.items for part in found if part.module == "text"] == [(0,)]


def curve(*rates: float) -> LayerProfile:
    """A layer of sizes 1, 2, 4, ... that takes size / rate seconds forward, and twice that backward."""
    sizes = tuple(float(2**at) for at in range(len(rates)))
    forward = tuple(size / rate for size, rate in zip(sizes, rates, strict=True))
    twice = tuple(2 * one for one in forward)
    none = (0.0,) * len(rates)
    return LayerProfile(
        sizes=sizes, forward=forward, backward=twice, input=forward, weight=forward, saved=none, kept=none
    )


def test_the_published_rule_by_hand():
    """vision reaches 95% of its best rate at 4, text at 2; at these sizes a module takes 3 * 4 / 0.96 a layer, 8 of
    them, and 3 * 2 / 1 a layer, 40 of them: 100 and 240 seconds, hence 1 and 2 segments."""
    modules = (
        ModuleProfile(name="vision", layers=8, layer=curve(0.5, 0.9, 0.96, 1.0)),
        ModuleProfile(name="text", layers=40, reads=("vision",), layer=curve(0.5, 1.0, 1.0, 0.99)),
    )
    profile = PipelineProfile(model="m", device="d", modules=modules)
    batches = [[{"vision": [1, 1], "text": [2]}], [{"text": [2]}]]
    assert published(profile, batches, 4) == ({"vision": 1, "text": 2}, {"vision": 4, "text": 1})
    assert published(profile, batches, 40 // 2) == ({"vision": 1, "text": 2}, {"vision": 4, "text": 1})
    assert published(profile, batches, 30)[0]["text"] == 1  # 40 layers are not enough for 60 chunks
    half = [[{"vision": [0.5] * 3, "text": [2]}]]
    assert published(profile, half, 4)[1]["vision"] == 8  # items of half the size


@pytest.mark.parametrize("split", ["never", "always"])
def test_the_search_is_no_worse_than_the_rule(split):
    batches = drifting(6)[:3]

    def seconds(segments: dict[str, int], most: dict[str, int]) -> float:
        cut = chunks(VLM_37B, 4, segments)
        return sum(seconds_in_order(graph_of(VLM_37B, batch, cut, most), VLM_37B, split) for batch in batches)

    rule, found = published(VLM_37B, batches, 4), searched(VLM_37B, batches, 4, split)
    assert seconds(*found) < seconds(*rule)
    assert found == searched(VLM_37B, batches, 4, split)
    fixed = searched(VLM_37B, batches, 4, split, given={"vision": 8})
    assert fixed[1] == {"vision": 8, "text": 1}
    assert seconds(*found) <= seconds(*fixed) <= seconds(*rule)


def test_a_cap_that_no_cut_keeps_is_named():
    with pytest.raises(PlanError, match=r"rank \d needs \d+ bytes for microbatch \d alone, the cap is 5"):
        searched(VLM_37B, [[{"vision": [169], "text": [8192]}] * 2], 2, cap=5)


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (lambda: chunks(VLM_37B, 16, {"vision": 5, "text": 1}), "64 layers for 80 chunks .*: at most 4 segments fit"),
        (lambda: chunks(VLM_37B, 65, {"vision": 1, "text": 1}), "at most 0 segments fit"),
        (lambda: chunks(VLM_37B, 0, {"vision": 1, "text": 1}), "0 ranks: give 1 or more"),
        (lambda: chunks(VLM_37B, 4, {"vision": 1}), "text has 0 segments"),
        (lambda: chunks(VLM_37B, 4, {"vision": 1, "text": 1, "audio": 1}), "no module audio: measure it"),
        (lambda: parts(texts(2), {"text": 0}), "parts of text hold 0 items"),
        (lambda: parts([{"text": [1]}, {"text": []}], {}), "microbatch 1 has no item"),
        (
            lambda: graph_of(TEXT_ONLY, [{"sound": [1], "text": [1]}], chunks(TEXT_ONLY, 2, {"text": 1}), {}),
            "no module sound: measure it",
        ),
        (
            lambda: graph_of(VLM_37B, [{"vision": [1]}], chunks(VLM_37B, 2, {"vision": 1, "text": 1}), {}),
            "microbatch 0 has items of vision, and none of text",
        ),
        (lambda: published(VLM_37B, [[{"text": [1]}]], 2), "no sample batch has an item of vision"),
        (
            lambda: published(
                replace(TEXT_ONLY, modules=(replace(TEXT_ONLY.modules[0], layer=even_layer(0, 1)),)), [texts(1)], 2
            ),
            "layers of text take no time",
        ),
    ],
)
def test_what_allows_no_cut_is_refused(made, why):
    with pytest.raises(PlanError, match=why):
        made()
