"""Plugin of pytest for `make gpu`: the GPU tests by length, and each in a file as soon as it has ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# Expected seconds of one test of a function; its first calls compile kernels. A test that is not here comes last.
SECONDS = {
    "test_sampler_and_trainer_agree": 2,
    "test_samples_that_share_their_prompt_have_the_gradient_of_rows_of_their_own": 2,
    "test_the_top_with_ties": 2,
    "test_all_blocks_is_dense_attention": 3,
    "test_the_kernels_choose_what_the_reference_chooses": 3,
    "test_large_activations": 4,
    "test_compiled_in_one_graph_it_gives_the_same": 8,
    "test_output_and_every_gradient": 10,
    "test_a_run_trains_and_resumes": 60,
    "test_two_gpus_give_the_trajectory_of_one": 90,
}
LATER = ("float32", "float16", "64", "96")  # types and head dims that come after bfloat16 and 128


class Recorder:
    """Appends to ``file`` how many tests there are and how each ended."""

    def __init__(self, file: Path):
        self.file = file

    def write(self, row: dict[str, Any]) -> None:
        with self.file.open("a") as out:
            out.write(json.dumps(row) + "\n")

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items.sort(key=length)

    def pytest_collection_finish(self, session: Any) -> None:
        self.write({"collected": len(session.items)})

    def pytest_runtest_logreport(self, report: Any) -> None:
        """A test ends with its call, or earlier where it was skipped or its set-up failed."""
        if report.when == "call" or report.outcome != "passed":
            row = {"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 3)}
            why = report.longreprtext.strip().splitlines()[-1:] if report.outcome == "failed" else []
            self.write(row | ({"why": why[0]} if why else {}))


def length(item: Any) -> tuple[float, int]:
    """Place of a test in the order: expected seconds, then how many of its types and dims come later."""
    words = item.name.replace("[", "-").replace("]", "-").replace(".", "-").split("-")
    return SECONDS.get(item.originalname, 1000), sum(word in LATER for word in words)


def pytest_addoption(parser: Any) -> None:
    parser.addoption("--record", type=Path, help="file of rows, one a test, written while the tests run")


def pytest_configure(config: Any) -> None:
    if config.option.record:
        config.pluginmanager.register(Recorder(config.option.record))
