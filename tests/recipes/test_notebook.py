"""The notebook of examples/: its cells, executed in order by a process of its own, train, evaluate and plot."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

from stepstack.config import ROOT
from tests.system.processes import MINI

NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
SEEN = """
import json
steps, values = (list(map(float, data)) for data in axes.lines[0].get_data())
[(_, result)] = evaluated
print("SEEN", json.dumps({"task": result["task"], "n": result["n"], "steps": steps, "values": values}))
"""


def test_the_cells_of_the_notebook_train_evaluate_and_plot(tmp_path):
    notebook = json.loads(NOTEBOOK.read_text())
    assert notebook["nbformat"] == 4
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    text = "\n\n".join("".join(cell["source"]) for cell in cells)
    text, count = re.subn(r'"orz-tiny", \[(.*)\]', rf'"{MINI}", [\1, "steps=2", "dir={tmp_path}"]', text)
    assert count == 1
    (tmp_path / "cells.py").write_text(text + SEEN)
    line = [sys.executable, str(tmp_path / "cells.py")]
    environment = os.environ | {"MPLBACKEND": "Agg", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.partition("SEEN ")[2])
    metrics = [json.loads(row) for row in (tmp_path / "notebook" / "metrics.jsonl").read_text().splitlines()]
    assert seen["steps"] == [0, 2]
    assert seen["values"] == [row["eval/accuracy"] for row in metrics if "eval/accuracy" in row]
    assert (seen["task"], seen["n"]) == ("orz_tiny_longer", 1024)
