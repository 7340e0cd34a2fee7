"""Tables come from files with provenance; a stale one is found; reported and measured stay apart."""

import json

import pytest

from stepstack.report import jsonl, tables
from stepstack.report.html import Report
from stepstack.report.provenance import provenance


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A repository with one README and one recorded run."""
    monkeypatch.setattr(tables, "RESULTS", tmp_path / "evals" / "results")
    run = tmp_path / "runs" / "orz-tiny-seed7"
    jsonl.write_json_atomic(
        run / "config.json",
        {"config": {"name": "orz-tiny-seed7", "seed": 7}, "hash": "abc", "provenance": provenance()},
    )
    for when, accuracy, length in (("before", 0.21, 12.3), ("after", 0.9, 39.0)):
        score = {"accuracy": accuracy, "stderr": 0.0125, "n": 1024, "k": 1, "length": length, "truncated": 0.0}
        jsonl.write_json_atomic(run / f"{when}.json", {**score, "provenance": {}, "samples": [{"response": "x"}]})
    for stage, seconds in (("base/", 60.0), ("", 90.4)):
        for step in (1, 2):
            jsonl.append(run / f"{stage}metrics.jsonl", {"step": step, "cpu_s": seconds / 2})
    jsonl.write_text_atomic(tmp_path / "README.md", "# x\n<!-- table: orz-tiny -->\n<!-- end -->\nend\n")
    return tmp_path


def test_record_keeps_figures_and_provenance_but_no_samples(place):
    kept = json.loads(tables.record(place / "runs" / "orz-tiny-seed7").read_text())
    assert kept["cpu_s"] == pytest.approx(150.4)
    assert kept["cpu_s_by_stage"] == pytest.approx([60.0, 90.4])
    assert kept["after"]["accuracy"] == 0.9
    assert "samples" not in kept["after"]
    assert kept["provenance"]["host"]["cores"] >= 1


def test_record_of_a_run_that_is_not_over(place):
    (place / "runs" / "orz-tiny-seed7" / "after.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"after.json does not exist: the run is not over"):
        tables.record(place / "runs" / "orz-tiny-seed7")


def test_a_stale_table_is_found_and_then_written(place, capsys):
    tables.record(place / "runs" / "orz-tiny-seed7")
    before = (place / "README.md").read_text()
    assert tables.generate(check=True, root=place) == 1
    assert (place / "README.md").read_text() == before
    assert tables.generate(root=place) == 0
    page = (place / "README.md").read_text()
    assert "| 7 | 0.210 ± 0.013 | 0.900 ± 0.013 | 12.3 | 39.0 | 60 + 90 |" in page
    assert "measured, n=1024" in page
    assert page.startswith("# x\n")
    assert page.endswith("<!-- end -->\nend\n")
    assert tables.generate(check=True, root=place) == 0
    assert "stale" in capsys.readouterr().out


def test_reported_figures_are_italic_and_say_whose_they_are():
    text = tables.render("orz-reported")
    assert "| ORZ-32B | *48.1* | *36.0* | *92.2* | *55.5* |" in text
    assert "reported, not measured by us: Open-Reasoner-Zero, arXiv 2503.24290" in text
    assert "| DeepSeek-R1-Zero-Qwen-32B | *47.0* | - |" in text


def test_an_unknown_table_names_those_there_are():
    with pytest.raises(ValueError, match="no table 'x': there are orz-tiny, bench-rl, orz-reported"):
        tables.render("x")


def test_a_page_escapes_what_a_model_wrote_and_leaves_out_curves_without_points(tmp_path):
    report = Report("run <1>")
    report.table("Samples", ("problem", "after"), [("1+1", "<script>alert(1)</script>")])
    report.curves(
        "Curves", [{"step": 1, "reward": 0.5}, {"step": 2, "reward": float("nan")}], {"R": ("reward",), "E": ("e",)}
    )
    text = report.write(tmp_path / "report.html").read_text()
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert text.count("<img") == 1
