"""Traces, waste against closed forms, costs to the cent, the MFU trend, and the commands without torch."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from stepstack.cli import main as cli
from stepstack.config import ROOT
from stepstack.planning.pods import closed
from stepstack.report import tables
from stepstack.simulation.pods import costs, mfu, traffic, waste
from stepstack.simulation.pods import trace as traces


def event(node, time, kind, level="Hardware Failure"):
    return {"node_id": node, "event_time": time, "event_type": f"fault_{kind}", "fault_type": {"Level": level}}


EVENTS = [event("a", 1, "start"), event("b", 2, "start"), event("a", 3, "start"), event("a", 4, "end")]
EVENTS += [
    event("b", 5, "end", "Hardware Failure"),
    event("a", 9, "end"),
    event("b", 10, "start"),
    event("b", 10, "end"),
]


@pytest.fixture
def write(tmp_path):
    def file(events):
        path = tmp_path / "trace.json"
        path.write_text(events if isinstance(events, str) else json.dumps(events))
        return path

    return file


# -- trace -----------------------------------------------------------------------------------------------------------


def test_a_node_is_faulty_while_it_has_any_fault(write):
    trace = traces.load(write(EVENTS), nodes=4)
    result = traces.states(trace.faults, 4, trace.days)
    assert (trace.events, len(trace.faults), trace.days) == (8, 4, 10)
    assert result.start_F.tolist() == [0, 1, 2, 3, 4, 5, 9]
    assert (~result.healthy_FN).sum(1).tolist() == [0, 1, 2, 2, 2, 1, 0]
    assert traces.statistics(trace)["faulty nodes, mean"] == pytest.approx((8 + 3) / 40)


def test_quantiles_are_over_time():
    result = traces.States(np.ones((3, 1), bool), np.array([1.0, 8.0, 1.0]), np.arange(3.0))
    assert [result.quantile(np.array([3.0, 1.0, 2.0]), q) for q in (0.5, 0.85, 0.99)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ("[", "not JSON"),
        ([], "a list of events with at least one"),
        ({"a": 1}, "must be a list of events"),
        ([3], "event 0: must be an object, not int"),
        ([{"node_id": "a"}], "event 0: no event_time"),
        ([event("a", 2, "start"), event("b", 1, "start")], "event 1: event_time 1 comes after 2: sort the events"),
        ([event("a", -1, "start")], "event 0: event_time -1 must be a number of days"),
        ([event("a", "1", "start")], "event_time '1' must be a number"),
        ([event("a", 1, "pause")], "event_type 'fault_pause' must be fault_start or fault_end"),
        ([event("a", 1, "end")], "event 0: fault_end of a without a fault_start"),
        ([event("a", 1, "start")], "1 faults never end, the first on a"),
        (
            [*EVENTS, *(event(n, 11, k) for n in "cde" for k in ("start", "end"))],
            "5 nodes had faults, but the cluster has 4",
        ),
    ],
)
def test_what_is_no_trace_is_refused(write, events, message):
    with pytest.raises(ValueError, match=message):
        traces.load(write(events), nodes=4)


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        ("link down", "link faults"),
        ("Link", "link faults"),
        ({"Level": "Hardware Failure"}, "hardware faults"),
        ({"Level": 2}, "2 faults"),
        ({"kind": "gpu"}, "unnamed faults"),
        ({"Level": None}, "unnamed faults"),
        ({"Level": " "}, "unnamed faults"),
        ("", "unnamed faults"),
        (None, "unnamed faults"),
    ],
)
def test_faults_of_ones_own_are_counted_by_their_name(write, fault, name):
    events = [{**event("a", time, kind), "fault_type": fault} for time, kind in ((1, "start"), (2, "end"))]
    assert traces.statistics(traces.load(write(events), nodes=4))[name] == 1.0


def test_a_trace_may_begin_with_a_byte_order_mark(write):
    assert traces.load(write("\ufeff" + json.dumps(EVENTS)), nodes=4).events == 8
    with pytest.raises(ValueError, match="not JSON"):
        traces.load(write("[" * 100_000), nodes=4)


def test_halves_keep_faults_and_their_times(write):
    trace = traces.load(write(EVENTS), nodes=4)
    result = traces.onto_halves(trace, 8, seed=1)
    whole = traces.states(trace.faults, 4, trace.days)
    assert (~result.healthy_FN).sum(1).max() >= 1
    assert set(result.start_F) <= set(whole.start_F)
    with pytest.raises(ValueError, match="nodes=9: the trace has 4 servers"):
        traces.onto_halves(trace, 9, seed=1)


# -- waste -----------------------------------------------------------------------------------------------------------


def test_independent_faults_waste_what_the_closed_forms_say():
    rows = waste.iid(nodes=720, tps=(16, 32), rates=(0.0, 0.01, 0.03, 0.05), draws=600)
    known = [row for row in rows if row["closed"] is not None]
    assert {row["architecture"] for row in known} >= {"ideal", "InfinitePOD K=2", "NVL-72", "TPUv4", "SiP-Ring"}
    apart = [abs(row["waste"] - row["closed"]) / max(row["waste_stderr"], 2e-4) for row in known]
    assert max(apart) < 4.5
    assert np.mean(np.array(apart) < 3) > 0.97


def test_closed_forms_at_their_ends():
    assert closed.fixed_blocks(0.0, 8) == 0
    assert closed.domains(0.0, 18, 8) == pytest.approx(2 / 18)
    assert closed.cubes(0.0, 64, 16, 32) == pytest.approx(0)
    assert closed.khop(0.0, 720, 8, 2) == 0
    assert closed.domains(0.3, 3, 2) == pytest.approx((3 * 0.7 * 0.09 + 0.343) / 3)


def test_a_job_waits_while_it_does_not_fit(write):
    trace = traces.load(write(EVENTS), nodes=16)
    rows = waste.replay(trace, nodes=32, tps=(8,), seeds=(0,), jobs=(0.5, 1.0), names=("ideal", "SiP-Ring"))
    ideal, fixed = rows
    assert ideal["waiting"]["0.5"] == 0
    assert ideal["waiting"]["1"] == pytest.approx(0.8)  # from day 1 to day 9
    assert fixed["waste"] >= ideal["waste"]


def test_traffic_of_draws_that_do_not_fit_is_not_counted():
    [row] = traffic.curve(nodes=32, per_tor=4, hops=2, tp=8, dp=2, share=1, rates=(0.2,), draws=2, methods=("greedy",))
    assert (row["placed"], row["cross"]) == (0, None)


# -- cost and MFU ----------------------------------------------------------------------------------------------------


def test_costs_are_the_published_ones_to_the_cent():
    published = json.loads((ROOT / "evals" / "reported" / "pods-cost.json").read_text())
    result = costs.table()
    assert {row["key"] for row in published["rows"]} == result.keys()
    for row in published["rows"]:
        for unit, reported in row["values"].items():
            assert round(result[row["key"]][unit], 2) == reported, (row["key"], unit)


def test_only_whole_units_are_bought():
    lines = costs.by_size((72, 73, 4096))
    assert lines["NVL-72"][0] == pytest.approx(9563.2)
    assert lines["NVL-72"][1] == pytest.approx(9563.2 * 144 / 73)
    assert lines["TPUv4"][2] == pytest.approx(1567.2)
    assert costs.by_size((72,), {"NVL-72": 0.5})["NVL-72"][0] == pytest.approx(2 * 9563.2)
    with pytest.raises(ValueError, match="give sizes of 1 GPU or more"):
        costs.by_size((0,))


def test_large_tp_pays_more_the_larger_the_cluster():
    rows = mfu.trend([2**i for i in range(10, 18)])
    ratios = [row["ratio"] for row in rows]
    assert len(rows) == 8
    assert ratios == sorted(ratios)
    assert ratios[0] == pytest.approx(1)
    assert ratios[-1] > 2.5
    assert all(0 < row[key]["mfu"] < 0.6 for row in rows for key in ("dgx", "best"))


def test_mfu_of_a_layout_by_hand():
    model, machine = mfu.Model(layers=2, batch=4), mfu.GpuSpec(memory=1e15, efficiency=0.5)
    assert mfu.step_mfu(model, machine, 1, 1, 1) == pytest.approx(0.5)
    assert mfu.step_mfu(model, machine, 2, 1, 2) == pytest.approx(0.5 * 4 / 5)  # a bubble of one in five slots
    assert mfu.step_mfu(model, machine, 3, 1, 1) is None
    assert mfu.step_mfu(model, mfu.GpuSpec(memory=1e6), 1, 1, 1) is None


# -- commands --------------------------------------------------------------------------------------------------------


def test_the_study_writes_a_page_plots_and_json(write, tmp_path, capsys):
    words = ["sim", "pods", "waste", "faults", "traffic", "cost", "mfu", "--json", "--out", str(tmp_path / "page")]
    small = ["--nodes", "144", "--draws", "20", "--rates", "0,.05", "--tor-nodes", "64", "--per-tor", "4", "--dp", "2"]
    events = write([*EVENTS[:6]])
    assert cli.main([*words, *small, "--tor-draws", "1", "--trace", str(events)]) == 0
    output = json.loads(capsys.readouterr().out)
    assert {"waste", "iid", "traffic", "gap", "cost", "mfu", "provenance"} <= output.keys()
    page = (tmp_path / "page" / "index.html").read_text()
    for name in ("waste-over-time", "waste-by-tp", "waiting", "waste-by-fault-ratio", "traffic", "cost", "mfu"):
        assert (tmp_path / "page" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (tmp_path / "page" / f"{name}.svg").read_text()
        assert f'alt="{name}"' in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["wast"], "no part 'wast': there are waste, faults"),
        (["waste"], "--trace fault_trace.json"),
        (["waste", "--trace", "nowhere.json"], "nowhere.json does not exist"),
        (["faults", "--tp", "8,x"], "--tp '8,x': must be numbers"),
        (["faults", "--tp", "4000"], "TP 4000: the cluster has 2880 GPUs"),
        (["faults", "--rates", "2"], "rate 2.0: a fault ratio is at least 0 and under 1"),
        (["cost", "--record"], "--record keeps all parts together"),
    ],
)
def test_a_study_that_cannot_be_has_one_error(words, message, capsys):
    assert cli.main(["sim", "pods", *words]) == 2
    assert message in capsys.readouterr().err


HIDE = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "accelerate"):
            raise ImportError(f"{name} is hidden")
sys.meta_path.insert(0, Hidden())
from stepstack.cli import main as cli
raise SystemExit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "words",
    [
        ["plan", "pods", "--nodes", "24", "--per-tor", "4", "--tp", "8", "--dp", "2"],
        ["sim", "pods", "cost", "mfu"],
        ["table", "pods.cost"],
    ],
)
def test_commands_need_no_torch(words, tmp_path):
    line = [sys.executable, "-c", HIDE, *words]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_tables_say_so_where_nothing_was_measured(tmp_path):
    (tmp_path / "evals" / "results").mkdir(parents=True)
    for name in ("pods.waste", "pods.reproduced", "pods.bench"):
        assert tables.render(name, root=tmp_path) == "Not measured yet.\n"
