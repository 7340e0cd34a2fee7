"""Exports hold what other runtimes read, refuse what these cannot run, and what they would hang on is not read."""

from __future__ import annotations

import re
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepstack.planning.pipeline import export
from stepstack.planning.pipeline.graph import (
    Action,
    Chunk,
    PipelineGraph,
    PipelineModule,
    PipelinePlan,
    PlanError,
    SubMicrobatch,
)


def chain(ranks: int, each: int, microbatches: int, split: bool = False, layers: int = 3) -> PipelineGraph:
    """One module, ``each`` chunks a rank in turn."""
    count = ranks * each
    return PipelineGraph(
        (PipelineModule("text", layers * count),),
        tuple(Chunk("text", layers * at, layers * (at + 1), at % ranks) for at in range(count)),
        tuple(SubMicrobatch(number, "text", (0,), 8) for number in range(microbatches)),
        frozenset(range(count)) if split else frozenset(),
    )


def shuffled(graph: PipelineGraph, seed: int = 0) -> PipelinePlan:
    """A valid plan in a random order that each rank could carry out."""
    random, done = Random(seed), set()
    order: list[list[Action]] = [[] for _ in range(graph.ranks)]
    left = list(graph.actions)
    while left:
        ready = [action for action in left if all(need in done for need in graph.needs(action))]
        action = random.choice(ready)
        left.remove(action)
        done.add(action)
        order[graph.rank_of(action)].append(action)
    return PipelinePlan(graph, tuple(map(tuple, order)))


def test_a_row_a_rank_in_torchs_words():
    plan = shuffled(chain(1, 1, 2, split=True))
    words = [f"{a.chunk}{a.kind}{export.microbatches(plan).index(a.part)}" for a in plan.order[0]]
    assert export.as_csv(plan) == ",".join(words) + "\n"


@given(st.integers(1, 4), st.integers(1, 2), st.integers(1, 5), st.booleans(), st.integers(0, 99))
def test_what_is_written_is_read_again_and_the_last_stage_counts_up(tmp_path_factory, ranks, each, many, split, seed):
    plan = shuffled(chain(ranks, each, many, split), seed)
    file = tmp_path_factory.mktemp("csv") / "a.csv"
    file.write_text(export.as_csv(plan))
    again = export.read_csv(file)
    last = ranks * each - 1
    taken = [a.part for actions in again.order for a in actions if (a.kind, a.chunk) == ("F", last)]
    assert taken == list(range(many))
    assert sorted(export.microbatches(plan)) == list(range(many))
    names = dict(enumerate(export.microbatches(plan)))
    assert tuple(tuple(a._replace(part=names[a.part]) for a in row) for row in again.order) == plan.order


@given(st.integers(0, 10_000))
def test_a_file_that_lacks_any_one_action_is_refused(tmp_path_factory, seed):
    random = Random(seed)
    plan = shuffled(chain(2, 2, 3, split=bool(seed % 2)), seed)
    rows = [line.split(",") for line in export.as_csv(plan).splitlines()]
    row = random.choice(rows)
    cell = row.pop(random.randrange(len(row)))
    file = tmp_path_factory.mktemp("csv") / "a.csv"
    file.write_text("\n".join(map(",".join, rows)))
    with pytest.raises(PlanError, match=rf"a\.csv: 1 of \d+ passes are missing, such as {cell}"):
        export.read_csv(file)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("0F0,0X0\n", r"a\.csv, row 1, cell 2: '0X0' is no pass"),
        ("0F0,0SEND_F0\n", "row 1, cell 2: '0SEND_F0' is no pass"),
        ("0F0,(0F1;0B0)OVERLAP_F_B,0B1", "row 1, cell 2: .* is no pass"),
        ("", "holds no pass"),
        ("0F0,0B0\n2F0,2B0\n", "no row has stage 1 of 3"),
        ("0F0,0B0,0F1\n0B1\n", "rank 1: 0B1 is a pass of rank 0"),
        ("0F0,0B0,0B0\n", "pass 0B0 stands in the plan 2 times"),
        ("0B0,0F0\n", "wait for each other for ever: rank 0 at 0B0"),
        ("1F0,0F0,1B0,0B0\n", "wait for each other for ever: rank 0 at 1F0"),
    ],
)
def test_files_that_are_no_schedule_are_refused_by_cell(tmp_path, text, why):
    file = tmp_path / "a.csv"
    file.write_text(text)
    with pytest.raises(PlanError, match=why):
        export.read_csv(file)


def test_empty_cells_are_idle_steps(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("0F0,,,0B0\n,1F0,1B0,\n")
    assert [len(row) for row in export.read_csv(file).order] == [2, 2]


JOIN = PipelineGraph(
    (PipelineModule("vision", 1), PipelineModule("text", 1, reads=("vision",))),
    (Chunk("vision", 0, 1, 0), Chunk("text", 0, 1, 1)),
    (SubMicrobatch(0, "vision", (0,), 8), SubMicrobatch(0, "text", (0,), 8)),
)
PARTS = tuple(SubMicrobatch(0, "text", (item,), 8) for item in range(2))
RAGGED = tuple(SubMicrobatch(number, "text", (0,), 8 + number) for number in range(2))


@pytest.mark.parametrize("write", [export.as_csv, export.layout])
@pytest.mark.parametrize(
    ("graph", "rule"),
    [
        (JOIN, "one chain: the plan has modules vision, text"),
        (replace(chain(2, 1, 1), parts=PARTS), "whole microbatches: "),
        (replace(chain(2, 1, 1), parts=RAGGED), "equal sizes: microbatches of 8 to 9"),
    ],
)
def test_what_static_runtimes_cannot_run_is_refused_by_the_rule(write, graph, rule):
    with pytest.raises(PlanError, match=rule):
        write(shuffled(graph))


def test_a_plan_that_recomputes_layers_is_refused_by_the_rule():
    with pytest.raises(PlanError, match="all layers kept: the plan recomputes some"):
        export.as_csv(replace(shuffled(chain(2, 1, 2)), recompute=((0, 0, 1),)))


def test_a_plan_that_is_none_is_not_exported():
    plan = shuffled(chain(2, 1, 2))
    with pytest.raises(PlanError, match="passes are missing"):
        export.as_csv(replace(plan, order=(plan.order[0], ())))


def parsed(text: str) -> list[list[str]]:
    """A layout as Megatron reads it: `x*n` is n times x, stages stand between bars."""
    return [list(stage) for stage in re.sub(r"(.)\*(\d+)", lambda m: m[1] * int(m[2]), text).split("|")]


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
def test_the_layout_is_the_cut(ranks, each, layers):
    graph = chain(ranks, each, 2, layers=layers)
    stages = parsed(export.layout(shuffled(graph)))
    assert [stage.count("t") for stage in stages] == [chunk.end - chunk.begin for chunk in graph.chunks]
    flat = [layer for stage in stages for layer in stage]
    assert (flat[0], flat[-1], flat.count("E"), flat.count("L")) == ("E", "L", 1, 1)


def test_a_layout_needs_chunks_in_turn():
    graph = chain(2, 2, 2)
    back = replace(graph, chunks=tuple(replace(c, rank=r) for c, r in zip(graph.chunks, (0, 1, 1, 0), strict=True)))
    with pytest.raises(PlanError, match="chunk 2 lies on rank 1: Megatron's layout puts stage 2 on rank 0"):
        export.layout(shuffled(back))
    assert export.as_csv(shuffled(back))  # torch takes the placement out of the file
    uneven = replace(graph, chunks=(*graph.chunks[:2], replace(graph.chunks[2], end=12)))
    with pytest.raises(PlanError, match="3 chunks on 2 ranks"):
        export.layout(shuffled(uneven))
