"""Pipelines on a simulated clock, against formulas and the paper; deaths, slow links, pictures, commands."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepstack import config
from stepstack.cli import main as cli
from stepstack.config import CONFIGS, ROOT
from stepstack.planning.rollout.allocation import Allocation
from stepstack.planning.rollout.curves import DecodeCurve
from stepstack.planning.rollout.dispatch import Fifo, LengthSplit, RandomHomes, SiblingFirst, Stealing
from stepstack.planning.rollout.generation import end_times
from stepstack.planning.rollout.job import PIPELINES, RolloutJob
from stepstack.planning.rollout.lengths import LogNormalLengths
from stepstack.report import tables
from stepstack.simulation.rollout import figures, published, study
from stepstack.simulation.rollout.fleet import LINK, TRAINER, Busy
from stepstack.simulation.rollout.pipelines import Setup, simulate

CURVE = DecodeCurve(batch=(1, 2, 8), milliseconds=(1000.0, 1500.0, 3000.0))
SETUP = Setup(instances=2, cap=4, curve=CURVE, token_seconds=0.1, weights_seconds=3.0)
SINGLE = CONFIGS / "plans" / "rollout-streamrl.yaml"

iterations = st.integers(1, 10).flatmap(
    lambda rows: st.lists(st.lists(st.integers(1, 20), min_size=2 * rows, max_size=2 * rows), min_size=1, max_size=4)
)
policies = st.sampled_from(
    [Fifo, SiblingFirst, lambda: RandomHomes(0), lambda: Stealing(RandomHomes(1)), lambda: LengthSplit(hash, 4, CURVE)]
)


def busy(outcome, lane):
    return [span for span in outcome.spans if span.lane == lane]


# -- invariants --------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.sampled_from(PIPELINES), iterations, st.integers(1, 3), st.integers(1, 5), st.sampled_from([1, 2]), policies)
def test_every_row_is_trained_once_in_order_of_iterations_and_nothing_overlaps(
    pipeline, lengths, instances, cap, samples, policy
):
    machines = replace(SETUP, instances=instances, cap=cap, samples=samples)
    outcome = simulate(pipeline, machines, lengths, policy())
    assert sorted(outcome.trained) == [(at, row) for at, rows in enumerate(lengths) for row in range(len(rows))]
    assert [at for at, _ in outcome.trained] == sorted(at for at, _ in outcome.trained)
    for lane in (*range(instances), TRAINER, LINK):
        spans = busy(outcome, lane)
        assert all(first.end <= second.start + 1e-9 for first, second in pairwise(spans))
    decoded = sum((span.end - span.start) / CURVE.seconds(span.rows) * span.rows for span in outcome.spans if span.rows)
    assert decoded == pytest.approx(sum(map(sum, lengths)))
    trained = sum(span.end - span.start for span in busy(outcome, TRAINER))
    assert trained == pytest.approx(0.1 * sum(map(sum, lengths)))
    assert outcome.lag <= (1 if pipeline in ("one-step", "async") else 0)
    assert outcome.redone == 0


@settings(deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=20), st.integers(1, 5))
def test_one_instance_decodes_as_the_planner_says(lengths, cap):
    machines = replace(SETUP, instances=1, cap=cap, token_seconds=0.0)
    outcome = simulate("batch", machines, [lengths], Fifo())
    assert outcome.seconds == pytest.approx(max(end_times(lengths, cap, CURVE)))


@settings(deadline=None)
@given(iterations, policies)
def test_streaming_is_never_slower_than_batches_and_colocation_is_a_sum(lengths, policy):
    batch, stream, mini = (simulate(name, SETUP, lengths, policy()) for name in ("batch", "stream", "mini-batch"))
    assert stream.seconds <= batch.seconds + 1e-6
    assert mini.seconds <= batch.seconds + 1e-6
    generation = simulate("batch", replace(SETUP, token_seconds=0.0, weights_seconds=0.0), lengths, policy()).seconds
    expected = generation + 0.1 * sum(map(sum, lengths)) + 3.0 * (len(lengths) - 1)
    assert batch.seconds == pytest.approx(expected)


# -- pipelines by hand -------------------------------------------------------------------------------------------------

# Two instances with room for one row, two rows of 10 and 20 steps of a second, a second of training for 10 tokens.
HAND = replace(SETUP, cap=1)
ROWS = [[10, 20]] * 3


@pytest.mark.parametrize(
    ("pipeline", "seconds"),
    [
        ("colocated", 3 * (20 + 3) + 2 * 3),  # its weights would travel too, if they took time
        ("batch", 3 * (20 + 3) + 2 * 3),
        ("mini-batch", 3 * (20 + 2) + 2 * 3),  # the row of 10 is trained while the other one is generated
        ("stream", 3 * (20 + 2) + 2 * 3),
        ("one-step", 20 + 20 + 3 + 20 + 3),  # training hides, the one transfer that something waits for does not
        # The rows of iteration 1 run at 10 to 20 and 20 to 40 on the first instance. The second one waits from 20 to 25
        # for the weights of iteration 0 (trained at 22), then does both rows of iteration 2, until 55.
        ("async", 22 + 3 + 30 + 2),
    ],
)
def test_pipelines_by_hand(pipeline, seconds):
    outcome = simulate(pipeline, replace(HAND, mini_batches=2), ROWS, Fifo())
    assert outcome.seconds == pytest.approx(seconds)


def test_groups_are_handed_over_whole():
    outcome = simulate("stream", replace(HAND, samples=2), ROWS[:1], Fifo())
    assert outcome.seconds == pytest.approx(20 + 3)


def test_a_streaming_trainer_waits_until_it_is_full():
    outcome = simulate("stream", replace(HAND, saturate=11), ROWS[:1], Fifo())
    assert outcome.seconds == pytest.approx(20 + 3)


def test_a_slow_link_is_exposed_where_generation_waits_for_it_and_hidden_in_async():
    """Iterations of 20 s of generation and 4 s of training; weights that travel for 0 or 10 s."""
    lengths = [[20, 20]] * 6

    def slower(pipeline):
        fast, slow = (simulate(pipeline, replace(HAND, weights_seconds=s), lengths, Fifo()) for s in (0.0, 10.0))
        return slow.seconds - fast.seconds, slow.exposed

    assert slower("stream") == pytest.approx((50, 50))
    assert slower("one-step") == pytest.approx((40, 40))
    assert slower("async") == pytest.approx((0, 0))


def test_an_instance_takes_new_weights_when_nothing_runs_on_it():
    """The weights for iteration 2 arrive at 10; a row of iteration 1 runs with older ones until 40."""
    flat = DecodeCurve(batch=(1,), milliseconds=(1000.0,))
    machines = Setup(instances=1, cap=2, curve=flat, token_seconds=0.0, weights_seconds=0.0)
    outcome = simulate("async", machines, [[10, 10], [5, 30], [10, 10]], Fifo())
    assert outcome.seconds == pytest.approx(50)


def test_weights_wait_for_a_link_that_is_busy():
    outcome = simulate("async", replace(HAND, weights_seconds=100.0), [[5, 5]] * 5, Fifo())
    sent = sorted((span.start, span.end) for span in busy(outcome, LINK))
    assert len(sent) == 3
    assert all(first[1] <= second[0] for first, second in pairwise(sent))


def test_idle_shares_by_hand():
    outcome = simulate("batch", HAND, ROWS[:1], Fifo())
    assert outcome.trainer_idle == pytest.approx(1 - 3 / 23)
    assert outcome.generator_idle == pytest.approx(1 - 30 / 46)
    assert outcome.throughput == pytest.approx(2 / 23)


# -- deaths ------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.sampled_from(PIPELINES), iterations, policies, st.floats(0, 100), st.integers(0, 2))
def test_work_of_an_instance_that_dies_is_done_elsewhere(pipeline, lengths, policy, seconds, dead):
    machines = replace(SETUP, instances=3, faults=((seconds, dead),))
    outcome = simulate(pipeline, machines, lengths, policy())
    assert sorted(outcome.trained) == [(at, row) for at, rows in enumerate(lengths) for row in range(len(rows))]
    assert all(span.end <= seconds + 1e-9 for span in busy(outcome, dead))
    assert outcome.redone <= machines.cap


def test_a_death_redoes_what_ran_from_its_start():
    outcome = simulate("batch", replace(HAND, faults=((15.0, 1),)), [[10, 20]], Fifo())
    assert outcome.redone == 1
    assert outcome.seconds == pytest.approx(15 + 20 + 3)


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        (((1.0, 2),), "instance 2 cannot die: there are 0 to 1"),
        (((1.0, 0), (2.0, 1)), "instance 1 dies at 2 s and no other is left"),
    ],
)
def test_deaths_that_leave_nothing_are_refused(faults, message):
    with pytest.raises(ValueError, match=message):
        simulate("batch", replace(HAND, faults=faults), ROWS, Fifo())


# -- studies -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def job():
    return config.read(RolloutJob, SINGLE)


def test_drawn_lengths_follow_the_law_and_siblings_are_alike(job):
    grouped = replace(job, samples=8)
    first, again = (study.draw(grouped, 4, 7) for _ in range(2))
    assert np.array_equal(first.tokens, again.tokens)
    assert np.median(first.tokens) == pytest.approx(3400, rel=0.15)
    assert first.tokens.max() == 20_000
    logs = np.log(first.tokens.reshape(4, -1, 8))
    assert logs.var(axis=2).mean() == pytest.approx(0.25 * logs.var(), rel=0.25)
    assert 0.6 < first.recall(0.2) < 0.85
    sure = replace(grouped, simulation=replace(job.simulation, ranker_error=0.0, unlike_siblings=0.0))
    exact = study.draw(sure, 2, 7)
    assert exact.recall(0.2) == 1
    assert np.array_equal(exact.tokens[0], exact.tokens[1])


def test_an_even_split_of_two_devices_gains_what_an_earlier_prototype_found(job):
    """2 of 3 parts of a colocated iteration are generation: batch .68, stream 1.14, one-step 1.23, async 1.37 over it.

    Async cannot gain more than 1.5 there, since the trainer alone takes two thirds of the colocated iteration.
    """
    small = replace(job, rows=128, simulation=replace(job.simulation, iterations=12))
    ratios = {name: [] for name in PIPELINES}
    for seed in range(3):
        lengths = study.draw(small, 12, seed).lengths
        tokens = sum(map(sum, lengths))
        both = Setup(instances=2, cap=64, curve=job.generation, token_seconds=0.0, weights_seconds=0.0)
        generation = simulate("colocated", both, lengths, Fifo()).seconds
        training = generation / 2 / tokens
        colocated = simulate("colocated", replace(both, token_seconds=training), lengths, Fifo()).seconds
        half = replace(both, instances=1, token_seconds=2 * training, weights_seconds=2.0, saturate=tokens // 96)
        for name in PIPELINES[1:]:
            ratios[name].append(colocated / simulate(name, half, lengths, Fifo()).seconds)
    means = {name: np.mean(values) for name, values in ratios.items() if values}
    assert means["batch"] == pytest.approx(0.68, abs=0.04)
    assert means["stream"] == pytest.approx(1.14, abs=0.06)
    assert means["one-step"] == pytest.approx(1.23, abs=0.10)
    assert means["async"] == pytest.approx(1.37, abs=0.10)
    assert means["batch"] < means["mini-batch"] < means["stream"] < means["one-step"] < means["async"] < 1.5


def test_makespans_are_those_of_the_second_visit(job):
    seconds = study.makespans(job, 1, lambda: None, ("fifo",))
    lengths = study.draw(job, 2, job.simulation.seed).lengths[1]
    assert seconds["fifo"] == pytest.approx(max(end_times(lengths, 64, job.generation)))


def test_what_is_known_of_lengths_shortens_generation(job):
    """4 instances with room for 64 rows, 4 samples a prompt, means of 3 draws. A prototype had .86 by siblings, .81 by
    a split of a ranker's estimates, .75 by the longest estimate first, .67 by a split of true lengths."""
    found = {name: [] for name in ("random", "sibling", "length", "longest", "oracle")}
    for seed in range(3):
        seeded = replace(job, samples=4, simulation=replace(job.simulation, seed=seed))
        seconds = study.makespans(seeded, 4, lambda: None, tuple(found))
        for name, values in found.items():
            values.append(seconds[name] / seconds["random"])
            assert seconds["bound"] <= seconds[name]
    means = {name: np.mean(values) for name, values in found.items()}
    assert means["oracle"] < means["longest"] < means["length"] < means["sibling"] < 0.95
    assert [means[name] for name in ("sibling", "length", "longest", "oracle")] == pytest.approx(
        [0.86, 0.81, 0.75, 0.67], abs=0.05
    )


@pytest.fixture(scope="module")
def experiments():
    return published.run(3, lambda what, units: lambda: None)


REPORTED = {
    row["key"]: row["values"] for row in json.loads((ROOT / "evals" / "reported" / "streamrl.json").read_text())["rows"]
}


@pytest.mark.parametrize("model", ["7B", "32B", "72B"])
@pytest.mark.parametrize("how", ["ranker", "oracle"])
def test_dispatch_by_length_gains_what_figure_9_reports(experiments, model, how):
    assert experiments["dispatch"][model][how] == pytest.approx(REPORTED[f"figure 9, {model}"][how], abs=0.10)


@pytest.mark.parametrize("model", ["32B", "72B"])
def test_devices_are_those_of_figure_10(experiments, model):
    found, reported = experiments["allocation"][model], REPORTED[f"figure 10, {model}"]
    assert (found["generation"], found["training"]) == (reported["generation"], reported["training"])


def test_two_datacentres_are_cheaper_as_in_figure_12_and_each_step_of_table_3_gains(experiments):
    assert {name for name, row in experiments["per_price"].items() if row["ratio"] > 1.1} == {"20K", "10K", "5K"}
    ladder = experiments["throughput"]
    assert list(ladder) == list(REPORTED["table 3"])
    assert list(ladder.values()) == sorted(ladder.values())


def test_the_tables_show_simulated_beside_reported(experiments, tmp_path):
    for name in ("reported", "results"):
        (tmp_path / "evals" / name).mkdir(parents=True)
    reported = ROOT / "evals" / "reported" / "streamrl.json"
    (tmp_path / "evals" / "reported" / "streamrl.json").write_text(reported.read_text())
    assert tables.render("streamrl.reproduced", root=tmp_path) == "Not simulated yet.\n"
    (tmp_path / "evals" / "results" / "streamrl.json").write_text(json.dumps(experiments))
    shown = tables.render("streamrl.reproduced", root=tmp_path)
    assert "|  | simulated | reported | verdict |" in shown
    assert sum(line.startswith("| ") for line in shown.splitlines()) == 1 + 6 + 2 + 3 + 4 + 3
    assert "differs" not in shown
    assert "other order" not in shown


# -- pictures and commands ---------------------------------------------------------------------------------------------


def test_neighbours_of_one_shade_are_one_bar():
    spans = [Busy(0, 0, 0, 1, 4), Busy(0, 0, 1, 2, 4), Busy(0, 0, 2, 3, 1), Busy(0, 1, 3, 4, 1), Busy(TRAINER, 0, 2, 5)]
    drawn = figures.merged(spans, cap=4)
    assert drawn == [
        Busy(TRAINER, 0, 2, 5, 0),
        Busy(0, 0, 0, 2, figures.SHADES),
        Busy(0, 0, 2, 3, 1),
        Busy(0, 1, 3, 4, 1),
    ]
    assert figures.merged([], cap=4) == []


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_a_picture_is_the_same_every_time(suffix):
    outcomes = {name: simulate(name, HAND, ROWS, Fifo()) for name in PIPELINES}
    first, again = (figures.encode(figures.gantt(outcomes, 1), suffix) for _ in range(2))
    assert first == again
    assert first.startswith(b"<?xml" if suffix == "svg" else b"\x89PNG")


SMALL = ["rows=64", "machines.devices=8", "simulation.iterations=2", "generation.cap=8"]


def test_the_command_compares_and_draws(capsys, tmp_path):
    picture = tmp_path / "gantt.svg"
    assert cli.main(["sim", "rollout", str(SINGLE), *SMALL, "--picture", str(picture), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["pipeline"] for row in found["pipelines"]] == list(PIPELINES)
    policies = {row["policy"]: row["ratio"] for row in found["dispatch"]}
    assert policies["random"] == 1
    assert policies["bound"] <= min(policies.values())
    assert b"one-step" in picture.read_bytes() or picture.stat().st_size > 1000
    assert cli.main(["sim", "rollout", str(SINGLE), *SMALL]) == 0
    assert "oracle" in capsys.readouterr().out


def test_stages_in_two_datacentres_are_not_colocated(capsys):
    cross = str(CONFIGS / "plans" / "rollout-streamrl-cross.yaml")
    assert cli.main(["sim", "rollout", cross, "rows=64", "simulation.iterations=1", "--json"]) == 0
    assert "colocated" not in [row["pipeline"] for row in json.loads(capsys.readouterr().out)["pipelines"]]
    assert cli.main(["sim", "rollout", cross, "simulation.pipelines=[colocated]"]) == 2
    assert "simulation.pipelines: stages in two datacentres cannot be colocated" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "say what to simulate: a FILE of configs/plans, or --published"),
        ([str(SINGLE), "--published"], "say what to simulate"),
        ([str(SINGLE), "--record"], "--record keeps the experiments of the paper: add --published"),
        ([str(SINGLE), "--picture", "gantt.pdf"], "--picture gantt.pdf: must end in .svg or .png"),
        (["--published", "--picture", "gantt.svg"], "--picture draws the pipelines of a FILE"),
        (["--published", "--seeds", "0"], "--seeds 0: draw at least once"),
        (["nowhere.yaml"], "nowhere.yaml does not exist"),
        (
            [str(SINGLE), "generation={type: step, devices: [1], seconds: [9.0]}"],
            "generation.type = 'step': seconds by devices cannot be simulated",
        ),
        (
            [str(SINGLE), *SMALL, "simulation.deaths=[{instance: 40, seconds: 1}]"],
            "simulation.deaths: colocated has no instance 40: name one of 0 to 7",
        ),
        (
            [str(SINGLE), "machines.devices=2", "simulation={pipelines: [batch], deaths: [{instance: 0, seconds: 1}]}"],
            "simulation.deaths: all 1 instances of batch die: leave one alive",
        ),
    ],
)
def test_what_cannot_be_simulated_is_one_error(capsys, words, message):
    assert cli.main(["sim", "rollout", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_setup_is_of_the_allocations_devices(job):
    found = Allocation(20, 12, 1.0, 1.0)
    apart, together = (study.setup(job, found, name) for name in ("stream", "colocated"))
    assert (apart.instances, together.instances) == (20, 32)
    assert apart.token_seconds == pytest.approx(together.token_seconds * 32 / 12)
    assert (apart.weights_seconds, together.weights_seconds) == (2.0, 0.0)
    assert isinstance(job.lengths, LogNormalLengths)
