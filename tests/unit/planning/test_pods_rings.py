"""Rings around faults: against brute force on small rings, fault by fault, and what cannot be built."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepstack.planning.pods.architectures import ARCHITECTURES, KHop, find, largest_job, waste
from stepstack.planning.pods.orchestrator import NONE, Orchestrator
from stepstack.planning.pods.ring import LOOPBACK, Ring

cases = st.tuples(st.integers(2, 4), st.integers(9, 14), st.integers(1, 4), st.integers(0, 2**14 - 1))


def unpacked(case) -> tuple[Ring, int, np.ndarray]:
    hops, nodes, size, bits = case
    return Ring(nodes, hops=hops), size, np.array([bits >> i & 1 for i in range(nodes)], bool)


def reachable(ring: Ring, healthy) -> list[set[int]]:
    """Connected components by walking links."""
    left, components = set(np.flatnonzero(healthy).tolist()), []
    while left:
        part, todo = set(), [left.pop()]
        while todo:
            node = todo.pop()
            part.add(node)
            near = {(node + hop) % ring.nodes for hop in range(-ring.hops, ring.hops + 1)}
            todo += near & left
            left -= near
        components.append(part)
    return components


def most_groups(ring: Ring, healthy, size: int) -> int:
    """Any disjoint chains, found by trying all."""

    def chains(node, used):
        def grow(chain):
            if len(chain) == size:
                yield chain
                return
            for hop in range(1, ring.hops + 1):
                other = (chain[-1] + hop) % ring.nodes
                if healthy[other] and other not in chain and not used >> other & 1:
                    yield from grow([*chain, other])

        yield from grow([node])

    best_of: dict[int, int] = {}

    def most(used):
        if used not in best_of:
            best = 0
            for node in range(ring.nodes):
                if healthy[node] and not used >> node & 1:
                    for chain in chains(node, used):
                        best = max(best, 1 + most(used | sum(1 << n for n in chain)))
            best_of[used] = best
        return best_of[used]

    return most(0)


@given(cases)
def test_components_are_what_walking_links_reaches(case):
    ring, _, healthy = unpacked(case)
    result = [set(part.tolist()) for part in ring.components(healthy)]
    assert sorted(map(sorted, result)) == sorted(map(sorted, reachable(ring, healthy)))


@given(cases)
def test_capacity_of_many_states_is_that_of_each(case):
    ring, size, healthy = unpacked(case)
    states = np.array([healthy, ~healthy, np.ones_like(healthy), np.zeros_like(healthy)])
    result = KHop(ring.hops).groups(states, size, 4)
    assert result.tolist() == [sum(len(part) // size for part in reachable(ring, state)) for state in states]


@settings(max_examples=25)
@given(st.integers(5, 8), st.integers(2, 3), st.integers(0, 2**8 - 1))
def test_no_disjoint_chains_are_more_than_the_components_hold(nodes, size, bits):
    ring = Ring(nodes, hops=2)
    healthy = np.array([bits >> i & 1 for i in range(nodes)], bool)
    assert KHop(2).groups(healthy[None], size, 4)[0] == most_groups(ring, healthy, size)


@given(cases)
def test_cut_rings_are_disjoint_and_buildable(case):
    ring, size, healthy = unpacked(case)
    for part in ring.components(healthy):
        chains = ring.cut(part, size)
        assert ring.buildable(chains).all()
        assert len(np.unique(chains)) == chains.size
        assert healthy[chains].all()


@given(cases)
def test_paths_join_both_ends_of_every_link_and_loop_back_at_the_ends_of_a_ring(case):
    ring, size, healthy = unpacked(case)
    wiring = ring.wiring()
    for part in ring.components(healthy):
        for chain in ring.cut(part, size):
            states = dict(zip(chain.tolist(), ring.paths(chain[None])[0].tolist(), strict=True))
            links = list(zip(chain.tolist(), chain.tolist()[1:], strict=False))
            for a, b in links:
                hop = (b - a) % ring.nodes
                for node, towards in ((a, hop), (b, -hop)):
                    bundle, path = wiring[towards]
                    assert states[node][bundle] == path
            opened = sum(state != LOOPBACK for row in states.values() for state in row)
            assert opened == 2 * len(links)


@pytest.mark.parametrize("hops", [2, 3, 4])
def test_every_hop_has_a_path_of_its_own(hops):
    wiring = Ring(20, hops=hops).wiring()
    assert sorted(wiring) == [hop for hop in range(-hops, hops + 1) if hop]
    assert len(set(wiring.values())) == 2 * hops
    assert {bundle for bundle, _ in wiring.values()} == set(range(hops))


def test_two_longest_hops_of_an_odd_ring_share_a_bundle():
    ring = Ring(20, hops=3)
    assert not ring.buildable(np.array([[0, 3, 6]]))[0]
    assert ring.buildable(np.array([[0, 3, 5]]))[0]
    with pytest.raises(ValueError, match=r"nodes \[0, 3, 6\] form no ring"):
        ring.paths(np.array([[0, 3, 6]]))


# -- fault by fault --------------------------------------------------------------------------------------------------


def sound(rings: Orchestrator) -> None:
    groups = rings.groups()
    assert rings.ring.buildable(groups).all()
    assert rings.healthy_N[groups].all()
    assert len(np.unique(groups)) == groups.size
    assert (rings.states_NK[rings.owner_N == NONE] == LOOPBACK).all()
    if len(groups):
        assert (rings.states_NK[groups] == rings.ring.paths(groups)).all()


@settings(max_examples=40)
@given(st.integers(2, 4), st.integers(9, 40), st.integers(1, 6), st.integers(0, 10**6))
def test_events_keep_as_many_rings_as_fit_and_tell_exactly_what_changed(hops, nodes, size, seed):
    rng = random.Random(seed)
    rings = Orchestrator(Ring(nodes, hops=hops), 4 * size, rng.sample(range(nodes), nodes // 5))
    for _ in range(25):
        node = rng.randrange(nodes)
        states, members = rings.states_NK.copy(), rings.members_GM.copy()
        change = rings.fault(node) if rings.healthy_N[node] else rings.repair(node)
        assert set(np.flatnonzero((states != rings.states_NK).any(1))) == set(change.nodes_W.tolist())
        assert set(np.flatnonzero((members != rings.members_GM).any(1))) == set(change.groups_C.tolist())
        assert (rings.states_NK[change.nodes_W] == change.states_WK).all()
        sound(rings)
        fit = KHop(hops).groups(rings.healthy_N[None], size, 4)[0]
        assert len(rings.groups()) == fit if hops % 2 == 0 else len(rings.groups()) <= fit


def test_a_hole_is_filled_by_the_nearest_spare_node():
    rings = Orchestrator(Ring(18), 16)  # four groups of four; nodes 16 and 17 are spare
    change = rings.fault(13)
    assert change.members_CM.tolist() == [[12, 14, 15, 16]]
    assert set(change.nodes_W.tolist()) <= {12, 13, 14, 15, 16}


def test_moves_bound_what_an_event_changes():
    free, bound = Orchestrator(Ring(400), 32), Orchestrator(Ring(400), 32, moves=2)
    for node in (0, 200):
        widest, least = (len(rings.fault(node).groups_C) for rings in (free, bound))
    assert widest > 3 >= least
    sound(bound)


def test_events_that_cannot_be_are_refused():
    rings = Orchestrator(Ring(20), 8, faulty=[3])
    with pytest.raises(ValueError, match="node 3 is faulty already"):
        rings.fault(3)
    with pytest.raises(ValueError, match="node 4 is not faulty"):
        rings.repair(4)
    with pytest.raises(ValueError, match="node 20 does not exist: the ring has nodes 0 to 19"):
        rings.fault(20)


# -- what cannot be built --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"nodes": 20, "hops": 1}, "hops=1: a node of 4 GPUs has room for 2 to 4"),
        ({"nodes": 20, "hops": 5}, "hops=5"),
        ({"nodes": 4, "hops": 2}, "nodes=4: a 2-hop ring needs at least 5 nodes"),
    ],
)
def test_impossible_rings_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        Ring(**shape)


def test_tp_must_be_whole_nodes_of_the_cluster():
    with pytest.raises(ValueError, match="TP 6: must be a multiple of the 4 GPUs"):
        Ring(20).group_nodes(6)
    with pytest.raises(ValueError, match="TP 84: the cluster has 80 GPUs"):
        Ring(20).group_nodes(84)
    with pytest.raises(ValueError, match="no architecture 'NVL-7': there are ideal"):
        find("NVL-7")


# -- rivals ----------------------------------------------------------------------------------------------------------


def blocks(healthy, size):
    return [healthy[i : i + size] for i in range(0, len(healthy), size)]


@settings(max_examples=30)
@given(st.sampled_from([2, 8, 16]), st.integers(0, 10**6))
def test_rivals_count_as_their_definitions_say(group, seed):
    healthy = np.random.default_rng(seed).random(144) > 0.1
    whole = [all(block) for block in blocks(healthy, group) if len(block) == group]
    expected = {
        "ideal": sum(healthy) // group,
        "SiP-Ring": sum(whole),
        "TPUv4": sum(whole),
        "NVL-576": sum(healthy) // group,
        "NVL-72": sum(sum(block) // group for block in blocks(healthy, 18)),
        "NVL-36": sum(sum(block) // group for block in blocks(healthy, 9)),
        "DGX-8": sum(sum(block) // group for block in blocks(healthy, 2)),
    }
    for name, groups in expected.items():
        result = largest_job(ARCHITECTURES[name], healthy[None], 4 * group)
        if result is not None:
            assert result[0] == 4 * group * groups
            assert waste(ARCHITECTURES[name], healthy[None], 4 * group)[0] == pytest.approx(
                (sum(healthy) - groups * group) / 144
            )


def test_a_domain_that_is_too_small_hosts_nothing():
    healthy = np.ones((1, 144), bool)
    assert waste(ARCHITECTURES["DGX-8"], healthy, 16) is None
    assert waste(ARCHITECTURES["NVL-36"], healthy, 64) is None
    assert waste(ARCHITECTURES["NVL-72"], healthy, 64) is not None


def test_a_tpu_group_beyond_a_cube_takes_whole_cubes():
    healthy = np.ones((1, 64), bool)
    healthy[0, 20] = False  # one of four cubes
    assert largest_job(ARCHITECTURES["TPUv4"], healthy, 128)[0] == 128
