"""`stepstack tasks --fetch`: all benchmarks without a name, those that are named with one."""

import json

import pytest

from data.sets.benchmarks import BENCHMARKS
from stepstack.cli.main import main


@pytest.mark.parametrize("names", [(), ("math500",), ("aime24", "gpqa_diamond")])
def test_fetch_takes_those_that_are_named_or_all(tmp_path, names):
    (tmp_path / "from").mkdir()
    for known in BENCHMARKS:
        row = {"prompt": [{"from": "user", "value": "Which?"}], "final_answer": "B", "choices": {"A": "x", "B": "y"}}
        rows = [row | {"prompt": [{"from": "user", "value": f"Which of {k}?"}]} for k in range(known.rows)]
        (tmp_path / "from" / known.file).write_text(json.dumps(rows))
    assert main(["tasks", *names, "--fetch", "--from", str(tmp_path / "from"), "--data", str(tmp_path / "data")]) == 0
    wanted = {known.file for known in BENCHMARKS if not names or known.name in names}
    assert {file.name for file in (tmp_path / "data").iterdir()} == wanted
