"""GraderPool: hostile answers cost one timeout, verdicts keep their order, nothing is swallowed."""

import json
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepstack.scoring.child_process import ChildError
from stepstack.scoring.maths.grade import GRADERS, MAX_ANSWER, grade
from stepstack.scoring.maths.pool import GraderPool

HERE = "tests.unit.scoring.maths.graders"


@pytest.fixture(scope="module")
def pool():
    with GraderPool(1, timeout=1.0) as pool:
        pool.grade("math_verify", "1", "2/2")  # starts the worker
        yield pool


def worker(pool: GraderPool, answer: str) -> dict:
    reason = pool.grade(f"{HERE}:process", "1", answer).reason
    return json.loads(reason.removeprefix("error: LookupError: "))


def test_order_and_one_verdict_for_equal_items(pool):
    items = [("math_verify", str(n % 5), f"{2 * n}/2") for n in range(10)]
    grades = pool.map(items + items)
    assert [g.correct for g in grades] == [n % 5 == n for n in range(10)] * 2
    assert grades[:10] == grades[10:]


def test_a_hanging_grader_ends_within_its_timeout_and_the_pool_goes_on(pool):
    before = worker(pool, "before")["pid"]
    timeouts = pool.timeouts
    begin = time.perf_counter()
    verdict = pool.grade(f"{HERE}:sleeps", "1", "2")
    assert time.perf_counter() - begin < 2 * (pool.timeout + 1) + 5, "two tries, and 5 s for the restart between them"
    assert (verdict.correct, verdict.reason, pool.timeouts) == (False, "timeout", timeouts + 1)
    assert pool.grade("math_verify", "1", "3/3").correct
    assert worker(pool, "after")["pid"] != before
    begin = time.perf_counter()
    assert pool.grade(f"{HERE}:sleeps", "1", "2") == verdict
    assert time.perf_counter() - begin < 0.1, "a repeated hang must come from the cache"


def test_a_timeout_is_a_verdict_after_a_second_try_only(pool, tmp_path):
    timeouts, retries = pool.timeouts, pool.retries
    late = str(tmp_path / "late")  # slow once, as on a machine that stalls
    assert pool.grade(f"{HERE}:slow_at_first", late, "2").correct
    assert (pool.timeouts, pool.retries) == (timeouts, retries + 1)
    assert pool.grade(f"{HERE}:slow_at_first", late, "2").correct


def test_a_dead_process_is_no_verdict(pool, tmp_path):
    ill = str(tmp_path / "ill")  # dies once, as one that the machine kills for memory
    first = pool.grade(f"{HERE}:dies_at_first", ill, "2")
    assert first.reason == "error: the grader's process died with exit code 7"
    assert pool.grade(f"{HERE}:dies_at_first", ill, "2").correct, "the death must not come from the cache"


@pytest.mark.parametrize("answer", ["9**9**9", "9^{9^{9}}", "10^{10^{10}}", "99999999!"])
@pytest.mark.parametrize("grader", ["math_verify", "orz_legacy"])
def test_huge_numbers_are_wrong_within_the_timeout(pool, grader, answer):
    begin = time.perf_counter()
    assert not pool.grade(grader, "5", answer).correct
    assert time.perf_counter() - begin < 2 * (pool.timeout + 1 + 5), "5 s allow for a worker's restart before a try"
    assert pool.grade(grader, "5", f"{10}/2").correct


def test_a_call_that_holds_the_interpreter_is_killed(pool):
    assert pool.grade(f"{HERE}:spins", "1", "2").reason in ("timeout", "error: MemoryError: ")
    assert pool.grade("math_verify", "1", "4/4").correct


def test_an_exception_is_the_reason_and_is_counted(pool):
    errors = pool.errors
    verdict = pool.grade(f"{HERE}:raises", "1", "2")
    assert not verdict.correct
    assert verdict.reason == "error: KeyError: 'a table has no such row'"
    verdict = pool.grade(f"{HERE}:dies", "1", "2")
    assert verdict.reason == "error: the grader's process died with exit code 7"
    assert pool.errors == errors + 2
    assert pool.grade(f"{HERE}:prints", "1", "2").correct


def test_workers_stay_and_never_import_torch(pool):
    first, second = worker(pool, "first"), worker(pool, "second")
    assert first == second
    assert first["torch"] is False


def test_any_thread_gets_the_same_verdicts(pool):
    items = [("math_verify", "\\frac13", "0.333333"), ("orz_legacy", "\\frac13", "0.333333")]
    observed: list[list[bool]] = []
    threads = [threading.Thread(target=lambda: observed.append([g.correct for g in pool.map(items)])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert observed == [[True, False]] * 4


def test_the_cache_keeps_the_most_recent():
    with GraderPool(1, cache=2) as pool:
        pids = [worker(pool, answer)["pid"] for answer in ("a", "b", "c")]
        assert len(pool._cache) == 2
        assert (pids[0], pool.errors) == (pids[1], 3)
        worker(pool, "c")
        assert pool.errors == 3, "a cached verdict is not counted again"
        worker(pool, "a")
        assert pool.errors == 4


def test_cheap_verdicts_start_no_process():
    with GraderPool(2) as pool:
        items = [("exact", "5", "5"), ("choice", "D", "(D)"), ("math_verify", "5", "5"), ("orz_legacy", "5", None)]
        assert [g.correct for g in pool.map(items)] == [True, True, True, False]
        assert pool._all == []


def test_refusals_come_before_any_work():
    with GraderPool(1) as pool:
        with pytest.raises(ValueError, match="empty gold"):
            pool.map([("math_verify", "", "5")])
        with pytest.raises(ValueError, match="no grader 'fuzzy'"):
            pool.map([("fuzzy", "5", "5")])
    with pytest.raises(ChildError, match="closed"):
        pool.map([])
    with pytest.raises(ValueError, match="workers=0"):
        GraderPool(0)


def test_close_ends_an_item_in_flight():
    pool = GraderPool(1, timeout=60)
    pool.grade("math_verify", "1", "2/2")
    caught: list[Exception] = []

    def ask():
        try:
            pool.grade(f"{HERE}:sleeps", "1", "2")
        except ChildError as error:
            caught.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.3)
    pool.close()
    thread.join(5)
    assert len(caught) == 1


def test_importing_the_pool_leaves_torch_out():
    code = "import sys, stepstack.scoring.maths.pool; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=60) | st.text(alphabet="0123456789xy+-*/^_{}()[]|\\frac sqrt,.=<>!% ", max_size=40))
def test_any_text_gets_a_verdict(pool, text):
    for grader in GRADERS:
        gold = "D" if grader == "choice" else "\\frac{1}{2}"
        verdict = pool.grade(grader, gold, text)
        assert isinstance(verdict.correct, bool)
        assert verdict.seconds < pool.timeout + 1


def test_a_very_long_answer_is_refused_at_once(pool):
    long = "9" * (MAX_ANSWER + 1)
    begin = time.perf_counter()
    for grader in ("math_verify", "orz_legacy", "exact"):
        assert grade(grader, "5", long).reason == "too long"
        assert grade(grader, long, long).correct
    assert time.perf_counter() - begin < 0.1
