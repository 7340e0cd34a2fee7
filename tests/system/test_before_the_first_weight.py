"""Before a step is taken: processes that have other code refuse to train, and only the head loads weights."""

from __future__ import annotations

import json
import os
from pathlib import Path

import psutil

from stepstack.core import preflight
from stepstack.core.run import Run
from stepstack.models.lm import tiny
from tests.system import fsdp
from tests.system.processes import train_ranks

MIB = 2**20


def other_code() -> None:
    """Rank 1 has a commit of its own."""
    whole = preflight.fingerprint

    def fingerprint(config):
        return whole(config) | ({"code": "another"} if os.environ["RANK"] == "1" else {})

    preflight.fingerprint = fingerprint


def test_every_rank_refuses_and_names_the_one_that_differs(tmp_path):
    ended = train_ranks(tmp_path / "run", 2, hooks=[(other_code,)])
    assert [e.code for e in ended] == [2, 2]
    for e in ended:
        assert "not all processes have what rank 0 on" in e.err
        assert "rank 1 on" in e.err
        assert "has another code" in e.err
    assert not (tmp_path / "run").exists()  # nothing was written, nothing was read


def weigh_load(folder: Path) -> None:
    """Write how much a process's memory and its model grow by loading, and end."""
    load = Run.load

    def weighed(self, whole, empty):
        process = psutil.Process()
        before = process.memory_info().rss
        model = load(self, whole, empty)
        for parameter in model.parameters():
            if not parameter.is_meta:
                parameter.sum()  # read, as the broadcast does: until then it lies in the file
        grown = process.memory_info().rss - before
        held = sum(p.numel() * p.element_size() for p in model.parameters() if not p.is_meta)
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        (folder / f"{self.rank}.json").write_text(json.dumps({"grown": grown, "held": held, "size": size}))
        self.accelerator.wait_for_everyone()
        raise SystemExit(0)

    Run.load = weighed


def test_processes_above_0_stay_empty_while_the_head_loads(tmp_path):
    base = tmp_path / "run" / "base" / "model"
    tokenizer = tiny.tokenizer()
    tiny.qwen2(len(tokenizer), hidden=640, layers=8, intermediate=2560, seed=0).save_pretrained(base)
    tokenizer.save_pretrained(base)
    ended = fsdp.train(tmp_path / "run", 2, hooks=((weigh_load, tmp_path),))
    assert [e.code for e in ended] == [0, 0], ended
    head, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert head["size"] == other["size"] > 150 * MIB
    assert (head["held"], other["held"]) == (head["size"], 0)
    assert head["grown"] > 0.8 * head["size"]
    assert other["grown"] < 0.2 * other["size"]
