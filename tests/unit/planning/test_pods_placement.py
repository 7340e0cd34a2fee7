"""Jobs under ToR switches: always sound, never worse than the greedy, optimal on small rings; rank files and launch."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepstack.cli import main as cli
from stepstack.config import ConfigError, Launch, RunConfig
from stepstack.core import launch
from stepstack.planning.pods import exact, rankfile
from stepstack.planning.pods.alignment import capacity, chains
from stepstack.planning.pods.placement import Deployment, Job, align_shards, crossings, place
from stepstack.planning.pods.ring import Ring

METHODS = ("greedy", "lines", "constrained", "aligned", "best")


def sound(deployment, healthy, job, placement) -> None:
    nodes = placement.nodes_SDM
    assert nodes.shape == (job.pp, job.dp, job.tp // 4)
    assert len(np.unique(nodes)) == nodes.size
    assert healthy[nodes].all()
    for group in nodes.reshape(-1, nodes.shape[2]):
        assert deployment.ring.buildable(deployment.ring.in_order(group)[None])[0]
    assert placement.crossings == crossings(nodes % deployment.tors)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([(2, 4), (4, 2), (4, 4), (2, 3)]), st.integers(2, 3), st.integers(0, 10**6))
def test_placements_use_each_healthy_node_once_and_rings_that_can_be_built(shape, hops, seed):
    per_tor, dp = shape
    deployment, rng = Deployment(Ring(48, hops=hops), per_tor), np.random.default_rng(seed)
    healthy = rng.random(48) > 0.1
    job = Job(8, dp, int(0.6 * 24 / dp))
    result = {method: place(deployment, healthy, job, method) for method in METHODS}
    for placed in result.values():
        sound(deployment, healthy, job, placed)
    assert result["aligned"].crossings <= min(result["greedy"].crossings, result["lines"].crossings)
    assert result["best"].crossings <= result["aligned"].crossings


@pytest.mark.parametrize("method", METHODS[1:])
def test_without_faults_no_traffic_leaves_a_tor(method):
    placed = place(Deployment(Ring(128), 4), np.ones(128, bool), Job(32, 4, 4), method)
    assert placed.rate == 0
    assert placed.hops == 128


@pytest.mark.parametrize("method", METHODS)
def test_groups_without_dp_peers_are_placed_too(method):
    deployment = Deployment(Ring(16), 4)
    placed = place(deployment, np.ones(16, bool), Job(16, 1, 2), method)
    sound(deployment, np.ones(16, bool), Job(16, 1, 2), placed)
    assert (placed.crossings, placed.hops) == (0, 0)


def test_dp_wider_than_a_tor_crosses_no_more_than_it_must():
    placed = place(Deployment(Ring(64), 4), np.ones(64, bool), Job(16, 8, 2), "aligned")
    assert placed.rate == 2 / 8


def brute_force(deployment, healthy, size, pairs) -> int:
    """Fewest hops between ToRs over all disjoint pairs of chains."""
    chains = [tuple(c) for c in exact.every_chain(deployment.ring, healthy, size).tolist()]
    under = {c: {node % deployment.tors for node in c} for c in chains}

    def least(left, open_):
        if not left:
            return 0
        best = 10**9
        for place_, (a, b) in enumerate(open_):
            rest = [(c, d) for c, d in open_[place_ + 1 :] if not {*a, *b} & {*c, *d}]
            if len(rest) >= left - 1:
                best = min(best, 2 * (size - len(under[a] & under[b])) + least(left - 1, rest))
        return best

    pairs_of = [(a, b) for a, b in itertools.combinations(chains, 2) if not set(a) & set(b)]
    return least(pairs, pairs_of)


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10**6))
def test_the_exact_optimum_is_that_of_brute_force(seed):
    deployment = Deployment(Ring(10), 2)
    healthy = np.random.default_rng(seed).random(10) > 0.1
    if healthy.sum() >= 9:
        placed = place(deployment, healthy, Job(8, 2, 2), "exact")
        assert placed.crossings == brute_force(deployment, healthy, 2, 2)


def test_best_is_the_optimum_of_small_rings_and_aligned_is_near():
    total = dict.fromkeys(("greedy", "aligned", "best", "exact"), 0)
    hops = 0
    for seed in range(8):
        healthy = np.random.default_rng(seed).random(20) > 0.1
        for method in total:
            placed = place(Deployment(Ring(20), 2), healthy, Job(8, 2, 3), method)
            total[method] += placed.crossings
        hops += placed.hops
    assert total["best"] == total["exact"]
    assert total["aligned"] - total["exact"] <= 0.02 * hops
    assert total["exact"] < total["greedy"]


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 3), st.integers(0, 2**9 - 1), st.integers(0, 10**6))
def test_chains_of_a_line_have_the_greatest_worth(hops, bits, seed):
    healthy = np.array([[bits >> i & 1 for i in range(9)]], bool)
    worth = np.random.default_rng(seed).integers(0, 5, (1, 2, 9)).astype(float)
    ring = Ring(9 + 2 * hops + 1, hops=hops)
    line = [
        c for c in itertools.combinations(np.flatnonzero(healthy[0]).tolist(), 2) if ring.buildable(np.array([c]))[0]
    ]
    options = [(a, b) for a in line for b in line if a[-1] < b[0]]
    result = chains(healthy, worth, 2, hops)
    if result is None:
        assert not options
        return
    best = max(worth[0, 0, list(a)].sum() + worth[0, 1, list(b)].sum() for a, b in options)
    assert np.take_along_axis(worth, result, 2).sum() == best
    assert capacity(healthy, 2, hops)[0] >= 2


def test_odd_hops_never_meet_in_a_chain():
    healthy = np.array([[1, 0, 0, 1, 0, 0, 1, 1]], bool)
    assert chains(healthy, np.ones((1, 1, 8)), 3, 3).tolist() == [[[3, 6, 7]]]
    assert chains(healthy[:, :7], np.ones((1, 1, 7)), 3, 3) is None


def test_shards_follow_tors():
    sets = np.array([[[0, 1, 2, 3], [10, 12, 13, 14]]])  # ten ToRs: the second group has none in ToR 1
    assert crossings(sets % 10) == 6
    followed = align_shards(sets, 10)
    assert followed.tolist() == [[[0, 1, 2, 3], [10, 14, 12, 13]]]
    assert crossings(followed % 10) == 2


def test_hosts_and_positions_are_each_others_inverse():
    deployment = Deployment(Ring(24), 4)
    assert [deployment.host(deployment.position(host)) for host in range(24)] == list(range(24))
    assert {deployment.host(p) // 4 for p in range(6)} == set(range(6))  # a line visits every ToR


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"job": Job(16, 4, 4)},
            r"the job needs 16 TP groups \(dp 4 x pp 4\) of 16 GPUs; the 47 healthy of 48 nodes hold 11",
        ),
        ({"method": "magic"}, "no method 'magic': there are greedy"),
        ({"job": Job(8, 3, 1), "method": "exact"}, "dp=3: the exact optimum is for pairs"),
        ({"job": Job(400, 1, 1)}, "TP 400: the cluster has 192 GPUs"),
    ],
)
def test_what_cannot_be_placed_is_refused(change, message):
    healthy = Ring(48).mask([5])
    with pytest.raises(ValueError, match=message):
        place(Deployment(Ring(48), 4), healthy, **{"job": Job(8, 2, 2), **change})


def test_tors_must_be_full():
    with pytest.raises(ValueError, match="per_tor=5: 48 nodes fill no whole ToR"):
        Deployment(Ring(48), 5)


# -- rank files and launch -------------------------------------------------------------------------------------------


@pytest.fixture
def ranks(tmp_path, capsys):
    """A rank file of 4 machines, as the command writes it, of a cluster of 16."""
    hosts, file = tmp_path / "hosts", tmp_path / "ranks"
    hosts.write_text("".join(f"gpu{i:02d}.cluster\n" for i in range(16)))
    words = ["plan", "pods", "--hosts", str(hosts), "--gpus", "8", "--per-tor", "4", "--tp", "16", "--dp", "2"]
    assert cli.main([*words, "--faulty", "gpu00.cluster", "--out", str(file)]) == 0
    capsys.readouterr()
    return file


def config(nodes: int = 4) -> RunConfig:
    return RunConfig(recipe="orz", launch=Launch(file="fsdp2-nodes", nodes=nodes, processes_per_node=8))


def test_machines_of_a_tp_group_are_neighbours_in_the_rank_file(ranks):
    names = rankfile.read(ranks)
    assert len(names) == len(set(names)) == 4
    assert "gpu00.cluster" not in names
    position = {f"gpu{host:02d}.cluster": Deployment(Ring(16, 8), 4).position(host) for host in range(16)}
    for first, second in (names[:2], names[2:]):
        assert abs(position[first] - position[second]) <= 2
    tors = [{int(name[3:5]) // 4 for name in pair} for pair in (names[::2], names[1::2])]
    assert [len(under) for under in tors] == [1, 1]  # a shard of both groups sits under one ToR


def test_launch_takes_rank_and_head_from_the_placement(ranks):
    names = rankfile.read(ranks)
    for rank, name in enumerate(names):
        here = launch.Placement(ranks, name.partition(".")[0])  # a short name will do
        line = launch.command(config(), "orz-32b", placement=here, environ={})
        assert line[line.index("--machine_rank") + 1] == str(rank)
        assert line[line.index("--main_process_ip") + 1] == names[0]


def test_dry_run_shows_the_line_of_every_machine(ranks, capsys):
    words = ["launch", "orz-32b", "launch.nodes=4", "--placement", str(ranks), "--dry-run"]
    assert cli.main(words) == 0
    output = capsys.readouterr().out.splitlines()[-8:]  # before them: what this machine has
    assert [line.removeprefix("# ") for line in output[::2]] == rankfile.read(ranks)
    assert [line.split("--machine_rank ")[1].split()[0] for line in output[1::2]] == ["0", "1", "2", "3"]
    assert cli.main([*words, "--host", rankfile.read(ranks)[2]]) == 0
    assert capsys.readouterr().out.count("--machine_rank 2") == 1


@pytest.mark.parametrize(
    ("text", "nodes", "options", "message"),
    [
        ("a\nb\n", 4, {}, "has 2 machines, but launch.nodes is 4"),
        ("a\n", 1, {}, "a run on one machine has no placement"),
        ("a\nb\na\n", 3, {}, "ranks:3: a has rank 0 already"),
        ("a b\n", 2, {}, "ranks:1: 'a b' is more than one name"),
        ("# nobody\n", 2, {}, "names no machine"),
        ("a\nb\n", 2, {"rank": 1}, "--rank 1: with --placement the rank is the place"),
        ("a\nb\n", 2, {"host": "c"}, "this machine, 'c', is not in it: give --host NAME"),
        ("a.x\na.y\n", 2, {"host": "a"}, "matches a.x and a.y"),
    ],
)
def test_a_placement_that_does_not_fit_is_refused(tmp_path, text, nodes, options, message):
    file = tmp_path / "ranks"
    file.write_text(text)
    placement = launch.Placement(file, options.get("host"))
    with pytest.raises(ConfigError, match=message):
        launch.command(config(nodes), "x", rank=options.get("rank"), placement=placement, environ={})


def test_a_missing_rank_file_and_a_host_without_one(tmp_path, capsys):
    with pytest.raises(ConfigError, match="does not exist: `stepstack plan pods --out FILE`"):
        rankfile.read(tmp_path / "none")
    assert cli.main(["launch", "orz-32b", "--dry-run", "--host", "a"]) == 2
    assert "say --placement FILE too" in capsys.readouterr().err


def test_plan_as_json_has_rings_and_paths(capsys):
    assert cli.main(["plan", "pods", "--nodes", "24", "--per-tor", "4", "--tp", "8", "--dp", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [len(ring["machines"]) for ring in result["rings"]] == [2, 2]
    assert [path for ring in result["rings"] for row in ring["paths"] for path in row].count("loopback") == 4
    assert sorted(result["ranks"]) == sorted(name for ring in result["rings"] for name in ring["machines"])


def test_plan_events_say_what_switches(capsys):
    words = ["plan", "pods", "--nodes", "20", "--per-tor", "4", "--tp", "16", "--event", "fault:node7"]
    assert cli.main([*words, "--json"]) == 0
    [event] = json.loads(capsys.readouterr().out)
    assert (event["rings"], event["spare_nodes"]) == (4, 3)
    assert event["switched"]["node7"] == ["loopback", "loopback"]
    assert cli.main([*words, "--event", "repair:node7"]) == 0
    assert "repair:node7: 5 rings, 0 spare nodes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tp", "8"], "--hosts FILE, or --nodes N"),
        (["--nodes", "24", "--tp", "8", "--faulty", "node99"], "no machine 'node99': there are node0 to node23"),
        (["--nodes", "24", "--tp", "8", "--event", "lost:node1"], "must be fault:MACHINE or repair:MACHINE"),
        (["--nodes", "24", "--tp", "8", "--event", "repair:node1"], "is not faulty"),
        (["--nodes", "24", "--tp", "200"], "TP 200: the cluster has 96 GPUs"),
        (["--nodes", "24", "--tp", "8", "--hops", "9"], "hops=9"),
    ],
)
def test_a_plan_that_cannot_be_has_one_error(words, message, capsys):
    assert cli.main(["plan", "pods", *words]) == 2
    assert message in capsys.readouterr().err
