"""Static pipelines: torch's orders action for action, cuts by time and by parameters, W filled in, any mix."""

from __future__ import annotations

from random import Random
from types import SimpleNamespace

import pytest
from torch.distributed.pipelining import schedules

from stepstack.planning.pipeline import baselines
from stepstack.planning.pipeline.graph import PlanError
from stepstack.planning.pipeline.partition import chunks
from stepstack.planning.pipeline.timeline import timeline
from tests.pipeline_batches import DRIFT, TEXT_ONLY, VLM_37B, pictures, texts


class RecordingStage:
    """Stage of torch's single-stage schedules that takes down which passes it is asked for."""

    def __init__(self, stage_index: int, is_last: bool) -> None:
        self.stage_index, self.is_last, self.passes = stage_index, is_last, list[str]()

    def forward_one_chunk(self, microbatch: int, *inputs: object, **options: object) -> None:
        self.passes.append(f"{self.stage_index}F{microbatch}")

    def backward_one_chunk(self, microbatch: int, **options: object) -> None:
        self.passes.append(f"{self.stage_index}B{microbatch}")

    def no_messages(self, microbatch: int) -> list:
        return []

    get_fwd_recv_ops = get_fwd_send_ops = get_bwd_recv_ops = get_bwd_send_ops = perform_reduce_grad = no_messages


def torch_order(kind: type, ranks: int, local: int, microbatches: int) -> list[list[str]]:
    """Computation of each rank by a schedule class of torch, without a process group: single-stage schedules run with
    stages that take down their passes, the others list them and ask their object for numbers alone."""
    if issubclass(kind, schedules.PipelineScheduleSingle):
        stages = [RecordingStage(rank, rank == ranks - 1) for rank in range(ranks)]
        for stage in stages:
            schedule = object.__new__(kind)
            schedule._initialize_stage = lambda *inputs: None
            schedule._stage, schedule._num_stages, schedule._n_microbatches = stage, ranks, microbatches
            schedule._loss_fn, schedule._internal_losses, schedule.scale_grads = None, [], False
            schedule._step_microbatches([()] * microbatches, [{}] * microbatches)
        return [stage.passes for stage in stages]
    rounds = max(1, microbatches // ranks)
    numbers = SimpleNamespace(
        pp_group_size=ranks,
        n_local_stages=local,
        num_stages=ranks * local,
        microbatches_per_round=microbatches // rounds,
        _n_microbatches=microbatches,
        _stages=[None] * local,
    )
    orders = [kind._calculate_single_rank_operations(numbers, rank) for rank in range(ranks)]
    return [[str(one) for one in order if one] for order in orders]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("microbatches", [1, 3, 4, 8, 10, 16])
@pytest.mark.parametrize(
    ("order", "theirs", "local"),
    [
        (baselines.gpipe, schedules.ScheduleGPipe, 1),
        (baselines.one_f_one_b, schedules.Schedule1F1B, 1),
        (baselines.looped_bfs, schedules.ScheduleLoopedBFS, 1),
        (baselines.looped_bfs, schedules.ScheduleLoopedBFS, 3),
        (baselines.interleaved, schedules.ScheduleInterleaved1F1B, 1),
        (baselines.interleaved, schedules.ScheduleInterleaved1F1B, 2),
        (baselines.interleaved, schedules.ScheduleInterleaved1F1B, 4),
        (baselines.zb_h1, schedules.ScheduleInterleavedZeroBubble, 1),
        (baselines.zb_v, schedules.ScheduleZBVZeroBubble, 2),
    ],
)
def test_orders_are_those_of_torch(order, theirs, local, ranks, microbatches):
    placement = "v" if order is baselines.zb_v else "loop"
    chain = baselines.static_chain(TEXT_ONLY, texts(microbatches), ranks, local=local, placement=placement)
    if order is baselines.interleaved and local > 1 and microbatches % max(1, microbatches // ranks):
        with pytest.raises(PlanError, match="equal rounds: take a multiple"):
            order(chain)
        return
    plan = order(chain)
    plan.check()
    assert [[str(action) for action in actions] for actions in plan.order] == torch_order(
        theirs, ranks, local, microbatches
    )


def test_static_pipelines_carry_any_mix():
    for seed, (low, high) in enumerate(DRIFT):
        batch = pictures(Random(seed), 8, low, high)
        for order, local in [
            (baselines.gpipe, 1),
            (baselines.one_f_one_b, 1),
            (baselines.interleaved, 4),
            (baselines.looped_bfs, 2),
            (baselines.zb_h1, 1),
        ]:
            order(baselines.static_chain(VLM_37B, batch, 4, local=local)).check()
        baselines.zb_v(baselines.static_chain(VLM_37B, batch, 4, local=2, placement="v")).check()


def test_cuts_by_time_and_by_parameters():
    """128 layers of 3.375 and 10.5 ms over two ranks; 78 and 500 million parameters."""
    batch = [{"vision": [169] * 4, "text": [8192]}] * 4
    by_time = baselines.static_chain(VLM_37B, batch, 2)
    by_parameters = baselines.static_chain(VLM_37B, batch, 2, balance="parameters")
    layers = [
        [(chunk.module, chunk.end - chunk.begin, chunk.rank) for chunk in chain.graph.chunks]
        for chain in (by_time, by_parameters)
    ]
    assert layers[0] == [("vision", 64, 0), ("text", 22, 0), ("text", 42, 1)]  # 447 and 441 ms
    assert layers[1] == [("vision", 64, 0), ("text", 27, 0), ("text", 37, 1)]  # 18.49 and 18.5 billion
    assert by_time.stages == ((0, 1), (2,))


def test_the_cut_of_a_chain_is_the_best_one():
    """Against all cuts of short chains."""
    from itertools import combinations

    random = Random(0)
    for _ in range(50):
        weights = [random.choice([0.0, 1.0, 2.5, 4.0]) for _ in range(7)]
        for count in (1, 2, 3, 7):
            every = [(*ends, 7) for ends in combinations(range(1, 7), count - 1)]
            runs = {ends: [sum(weights[a:b]) for a, b in zip((0, *ends), ends, strict=False)] for ends in every}
            value = {ends: (round(max(run), 6), round(sum(x * x for x in run), 6)) for ends, run in runs.items()}
            assert value[baselines._cut(weights, count)] == min(value.values())


def test_weight_gradients_filled_into_a_static_order():
    """No later than the order with whole backward passes, and the order of the others stays."""
    for seed in range(5):
        batch = pictures(Random(seed), 8, 0, 32)
        for local in (1, 4):
            whole = baselines.interleaved(baselines.static_chain(VLM_37B, batch, 4, local=local))
            filled = baselines.filled(whole, VLM_37B)
            filled.check()
            assert timeline(filled, VLM_37B).makespan < timeline(whole, VLM_37B).makespan
            for before, after in zip(whole.order, filled.order, strict=True):
                rest = [str(action).replace("I", "B") for action in after if action.kind != "W"]
                assert rest == [str(action) for action in before]


def test_one_order_for_all_batches():
    sample = [pictures(Random(seed), 6, 0, 32) for seed in range(3)]
    cut = chunks(VLM_37B, 4, {"vision": 1, "text": 2})
    plans = [baselines.searched_once(VLM_37B, batch, cut, sample) for batch in [*sample, [{"text": [8192]}] * 6]]
    orders = []
    for plan in plans:
        plan.check()
        parts = plan.graph.parts
        orders.append(
            [(a.kind, a.chunk, parts[a.part].microbatch) for a in plan.order[0] if parts[a.part].module == "text"]
        )
    assert orders[0] == orders[1] == orders[2] == orders[3]


def test_a_sample_without_pictures_orders_none():
    cut = chunks(VLM_37B, 2, {"vision": 1, "text": 1})
    with pytest.raises(PlanError, match="no sample batch has an item of vision"):
        baselines.searched_once(VLM_37B, pictures(Random(0), 2, 1, 2), cut, [[{"text": [8192]}] * 2])


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (lambda: baselines.static_chain(TEXT_ONLY, texts(2), 65), "64 layers for 65 stages"),
        (lambda: baselines.static_chain(TEXT_ONLY, texts(2), 2, balance="parameters"), "no layer_parameters"),
        (lambda: baselines.static_chain(TEXT_ONLY, texts(2), 2, placement="v"), "2 stages on a rank, not 1"),
        (lambda: baselines.gpipe(baselines.static_chain(TEXT_ONLY, texts(2), 2, local=2)), "one stage on a rank"),
        (lambda: baselines.zb_v(baselines.static_chain(TEXT_ONLY, texts(2), 2, local=2)), "in a V"),
    ],
)
def test_what_no_static_pipeline_can_do_is_refused(made, why):
    with pytest.raises(PlanError, match=why):
        made()
