"""Static plans in the files of other runtimes: torch's schedules (CSV) and Megatron's layouts. No torch.

torch.distributed.pipelining takes one row of cells such as `0F1` a rank: stage, kind, microbatch. torchtitan
(`pipeline_parallel_schedule_csv`) and NeMo AutoModel load such a file once, at the start.
"""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

from stepstack.planning.pipeline.graph import (
    Action,
    Chunk,
    PipelineGraph,
    PipelineModule,
    PipelinePlan,
    PlanError,
    SubMicrobatch,
)

CELL = re.compile(r"(\d+)([FBIW])(\d+)")


def as_csv(plan: PipelinePlan) -> str:
    """Plan in torch's format of computing alone (`format="compute_only"`), a row a rank.

    Microbatches are numbered by the last stage's forward passes, since torch looks up losses by their order: give it
    the batch in the order of ``microbatches``. PlanError for what torch's runtime cannot carry out, see
    ``check_static``.
    """
    check_static(plan)
    number = {microbatch: at for at, microbatch in enumerate(microbatches(plan))}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for actions in plan.order:
        parts = plan.graph.parts
        writer.writerow([f"{a.chunk}{a.kind}{number[parts[a.part].microbatch]}" for a in actions])
    return text.getvalue()


def microbatches(plan: PipelinePlan) -> tuple[int, ...]:
    """Microbatches in the order in which the last chunk takes them forward."""
    last = len(plan.graph.chunks) - 1
    forwards = (action for actions in plan.order for action in actions if action.kind == "F" and action.chunk == last)
    return tuple(plan.graph.parts[action.part].microbatch for action in forwards)


def layout(plan: PipelinePlan) -> str:
    """Cut of the model as Megatron's `pipeline_model_parallel_layout`: E embedding, t a layer, L the loss, | between
    stages, of which stage s lies on rank s modulo the ranks. It has no order: Megatron runs 1F1B of its own.

    PlanError for what ``check_static`` refuses, and for chunks that do not lie in turn on all ranks.
    """
    check_static(plan)
    ranks = plan.graph.ranks
    for number, chunk in enumerate(plan.graph.chunks):
        if chunk.rank != number % ranks:
            raise PlanError(
                f"chunk {number} lies on rank {chunk.rank}: Megatron's layout puts stage {number} on rank "
                f"{number % ranks}; plan with chunks in turn on the ranks"
            )
    if len(plan.graph.chunks) % ranks:
        raise PlanError(
            f"{len(plan.graph.chunks)} chunks on {ranks} ranks: Megatron's layout gives each rank equally many; "
            "choose a multiple"
        )
    stages = [f"t*{chunk.end - chunk.begin}" for chunk in plan.graph.chunks]
    return "|".join(["E" + stages[0], *stages[1:]]) + "L"


def check_static(plan: PipelinePlan) -> None:
    """PlanError, which names the rule, unless the plan is one that a static runtime can carry out: one chain of
    layers, each microbatch whole, all of one size, nothing recomputed."""
    plan.check()
    graph = plan.graph
    if len(graph.modules) > 1:
        names = ", ".join(module.name for module in graph.modules)
        raise PlanError(
            f"one chain: the plan has modules {names}, and static runtimes know no joins; export a plan of one"
        )
    if len(graph.parts) != len({part.microbatch for part in graph.parts}):
        raise PlanError(
            "whole microbatches: the plan takes some in parts, and static runtimes know no sub-microbatches; plan "
            "with whole ones"
        )
    if plan.recompute:
        raise PlanError(
            "all layers kept: the plan recomputes some, part by part, and static runtimes do so by module; set "
            "options.recompute=false"
        )
    if len(sizes := sorted({part.size for part in graph.parts})) > 1:
        raise PlanError(
            f"equal sizes: microbatches of {sizes[0]:g} to {sizes[-1]:g}, and static runtimes make all buffers for the "
            "first; pad or pack them to one size"
        )


def read_csv(file: Path) -> PipelinePlan:
    """Plan of a file in torch's format, checked: stages are chunks of one layer of a module named model.

    PlanError that names file and cell for what is no pass, and for plans that would hang in torch: passes that are
    missing or doubled, stages on two ranks, orders that wait for each other.
    """
    try:
        rows = list(csv.reader(io.StringIO(file.read_text(encoding="utf-8"))))
    except UnicodeDecodeError as error:
        raise PlanError(f"{file} is no text: {error}; write it with `stepstack plan pipeline --csv`") from None
    order = tuple(
        tuple(_action(cell, f"{file}, row {row + 1}, cell {at + 1}") for at, cell in enumerate(cells) if cell.strip())
        for row, cells in enumerate(rows)
    )
    every = [action for actions in order for action in actions]
    if not every:
        raise PlanError(f"{file} holds no pass: write it with `stepstack plan pipeline --csv`")
    ranks = {action.chunk: rank for rank, actions in reversed(list(enumerate(order))) for action in actions}
    if missing := sorted(set(range(max(ranks) + 1)) - set(ranks)):
        raise PlanError(f"{file}: no row has stage {missing[0]} of {max(ranks) + 1}: complete it")
    graph = PipelineGraph(
        (PipelineModule("model", len(ranks)),),
        tuple(Chunk("model", stage, stage + 1, ranks[stage]) for stage in sorted(ranks)),
        tuple(SubMicrobatch(number, "model", (0,), 1) for number in range(1 + max(action.part for action in every))),
        frozenset(action.chunk for action in every if action.kind in "IW"),
    )
    plan = PipelinePlan(graph, order)
    try:
        plan.check()
    except PlanError as error:
        raise PlanError(f"{file}: {error}") from None
    return plan


def _action(cell: str, where: str) -> Action:
    found = CELL.fullmatch(cell.strip())
    if found is None:
        raise PlanError(
            f"{where}: {cell.strip()[:40]!r} is no pass: write stage, F, B, I or W, microbatch, such as 0F1"
        )
    stage, kind, microbatch = found.groups()
    return Action(kind, int(stage), int(microbatch))  # type: ignore[arg-type]
