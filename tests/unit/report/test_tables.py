"""Tables come from files with provenance; a stale one is found; what is recorded is what a run left."""

import json

import pytest

from stepstack.config import ConfigError
from stepstack.report import jsonl, tables
from stepstack.report.charts import StageRows
from stepstack.report.html import Report
from stepstack.report.provenance import provenance
from tests import tools
from tests.unit.report.test_layout import result

LAYOUT = """
title: Sums
columns: [{task: orz_tiny, metric: avg@1}]
rows: [{model: trained, results: orz-tiny-seed7, label: after}]
"""


def left_by_an_evaluation(run, label, value, length, task="orz_tiny"):
    folder = run / "evals" / label / f"{task}-avg1-01234567"
    jsonl.write_json_atomic(folder / "result.json", result(task, value) | {"length": length})
    jsonl.write_rows_atomic(folder / "samples.jsonl", [{"text": "a sample"}])


@pytest.fixture
def place(tmp_path):
    """A repository with one README, one layout and one finished run."""
    run = tmp_path / "runs" / "orz-tiny-seed7"
    jsonl.write_json_atomic(
        run / "config.json",
        {"config": {"name": "orz-tiny-seed7", "seed": 7}, "hash": "abc", "provenance": provenance()},
    )
    left_by_an_evaluation(run, "before", 0.21, 12.3)
    left_by_an_evaluation(run, "before", 0.11, 15.0, "orz_tiny_longer")
    left_by_an_evaluation(run, "after", 0.9, 39.0)
    left_by_an_evaluation(run, "checkpoints/step-10", 0.5, 20.0)
    for stage, seconds in (("base/", 60.0), ("", 90.4)):
        for step in (1, 2):
            jsonl.append(run / f"{stage}metrics.jsonl", {"step": step, "cpu_s": seconds / 2})
    jsonl.write_text_atomic(tmp_path / "evals" / "tables" / "mine.yaml", LAYOUT)
    blocks = "".join(f"<!-- table: {name} -->\n<!-- end -->\n" for name in ("orz-tiny", "mine"))
    jsonl.write_text_atomic(tmp_path / "README.md", f"# x\n{blocks}end\n")
    return tmp_path


def recorded(place):
    return tables.record(place / "runs" / "orz-tiny-seed7", place)


def test_record_keeps_results_and_provenance_but_no_samples(place):
    file = recorded(place)
    assert file == place / "evals" / "results" / "orz-tiny-seed7.json"
    stored = json.loads(file.read_text())
    assert stored["kind"] == "run"
    assert stored["cpu_s"] == pytest.approx(150.4)
    assert stored["cpu_s_by_stage"] == pytest.approx([60.0, 90.4])
    assert {label: [r["task"] for r in results] for label, results in stored["evals"].items()} == {
        "after": ["orz_tiny"],
        "before": ["orz_tiny", "orz_tiny_longer"],
    }
    assert stored["evals"]["after"][0] == result("orz_tiny", 0.9) | {"length": 39.0}
    assert "a sample" not in file.read_text()
    assert stored["provenance"]["host"]["cores"] >= 1


def test_the_curve_is_that_of_the_last_stage_that_has_one(place):
    """A recipe may train its last stage in a folder of its own, as M-DocSum's GRPO does."""
    run = place / "runs" / "orz-tiny-seed7"
    (run / "grpo").mkdir()
    (run / "metrics.jsonl").unlink()
    row = {"step": 1, "cpu_s": 5.0, "loss": 2.0, "eval/accuracy": 0.5}
    (run / "grpo" / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    stored = json.loads(recorded(place).read_text())
    assert stored["curve"] == [{"step": 1, "eval/accuracy": 0.5, "loss": 2.0}]
    assert sorted(stored["cpu_s_by_stage"]) == pytest.approx([5.0, 60.0])


def test_record_of_a_run_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none is no run: train it first, or say which by name="):
        tables.record(tmp_path / "none", tmp_path)


def test_record_of_a_run_that_was_not_evaluated(place):
    for file in place.glob("runs/*/evals/*/*/result.json"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"evals holds no result.json: train to the end"):
        recorded(place)


def test_a_stale_table_is_found_and_then_written(place, capsys):
    recorded(place)
    before = (place / "README.md").read_text()
    assert tables.generate(check=True, root=place) == 1
    assert (place / "README.md").read_text() == before
    assert tables.generate(root=place) == 0
    page = (place / "README.md").read_text()
    assert "| 7 | 0.210 ± 0.013 | 0.900 ± 0.013 | 12.3 | 39.0 | 60 + 90 |" in page
    assert "measured, n=1024 held-out problems, avg@1, T=1, top_p=1, max_tokens=64, ± stderr; d076faf588d4" in page
    assert "| trained | 0.900 ± 0.013 |" in page
    assert page.startswith("# x\n")
    assert page.endswith("<!-- end -->\nend\n")
    assert tables.generate(check=True, root=place) == 0
    assert "stale" in capsys.readouterr().out
    left_by_an_evaluation(place / "runs" / "orz-tiny-seed7", "after", 0.8, 39.0)
    recorded(place)
    assert tables.generate(check=True, root=place) == 1


def test_runs_that_were_measured_differently_are_not_put_together_in_silence(place):
    file = recorded(place)
    stored = json.loads(file.read_text())
    stored["evals"]["after"][0]["plan"]["n"] = 512
    jsonl.write_json_atomic(file.with_name("orz-tiny-seed8.json"), stored)
    assert "\n\nnot comparable: n differs (1024, 512)\n" in tables.render("orz-tiny", root=place)
    del stored["evals"]["after"]
    jsonl.write_json_atomic(file.with_name("orz-tiny-seed8.json"), stored)
    with pytest.raises(ConfigError, match=r"orz-tiny-seed8.json has no label 'after': there are before"):
        tables.render("orz-tiny", root=place)


def test_nothing_recorded_yet(place):
    assert tables.render("orz-tiny", root=place) == "No run has been recorded.\n"
    assert tables.render("bench-rl", root=place) == "Not measured yet.\n"


def test_reported_figures_are_italic_and_say_whose_they_are():
    text = tables.render("orz-reported")
    assert "| ORZ-32B | *48.1* [1] | *36.0* [1] | *92.2* [1] | *55.5* [1] |" in text
    assert "[1] reported, not measured by us: Open-Reasoner-Zero, arXiv 2503.24290" in text
    assert "| DeepSeek-R1-Zero-Qwen-32B | *47.0* [2] | - |" in text


def test_other_formats(place):
    recorded(place)
    assert "\\begin{tabular}{lrrrrr}" in tables.render("orz-tiny", "tex", place)
    assert "7 & 0.210 $\\pm$ 0.013 & 0.900 $\\pm$ 0.013 & 12.3 & 39.0 & 60 + 90 \\\\" in tables.render(
        "orz-tiny", "tex", place
    )
    assert "<td>0.900 ± 0.013</td>" in tables.render("mine", "html", place)
    assert tables.render("bench-rl", "tex").count("\\begin{table}") == 2


def test_an_unknown_table_names_those_there_are(place):
    with pytest.raises(ValueError, match=r"no table 'x': there are bench-grpo, .*, orz-tiny, pods, .*, mine"):
        tables.render("x", root=place)


def test_a_page_escapes_what_a_model_wrote_and_leaves_out_curves_without_points(tmp_path):
    report = Report("run <1>")
    report.table("Samples", ("problem", "after"), [("1+1", "<script>alert(1)</script>")])
    rows = [{"step": 1, "reward": 0.5, "e</script>": 1.0}, {"step": 2, "reward": float("nan"), "loss": float("inf")}]
    report.curves("Curves", [StageRows("<b>SFT</b>", rows)])
    report.link("Every <sample>", 'a".html')
    text = report.write(tmp_path / "report.html").read_text()
    assert text.count("<script") == text.count("</script>") == 2  # the data and the page's own
    assert "&lt;script&gt;alert(1)" in text
    assert "<b>SFT" not in text
    charts = tools.page_data(tmp_path / "report.html")["charts"]
    assert list(charts) == ["Reward", "e</script>"]
    assert charts["Reward"]["lines"] == [{"label": "reward", "stage": 0, "at": [0], "y": [0.5]}]
    assert "1 values that are not finite are left out" in text
    assert '<a href="a&quot;.html">Every &lt;sample&gt;</a>' in text


PLOT = """
file: docs/curves.svg
panels: [{title: sums, metric: avg@1, results: [orz-tiny-seed7]}]
"""


def test_a_curve_has_all_that_was_selected_by_and_the_mean_loss_since(place):
    rows = [{"step": 0, "eval/accuracy": 0.1, "eval/error": 4.0}, {"step": 1, "loss": 3.0}, {"step": 2, "loss": 1.0}]
    rows += [{"step": 3, "loss": 5.0, "eval/accuracy": 0.2, "eval/error": 2.0}, {"step": 4, "loss": 9.0}]
    assert tables.curve(rows) == [
        {"step": 0, "eval/accuracy": 0.1, "eval/error": 4.0},
        {"step": 3, "eval/accuracy": 0.2, "eval/error": 2.0, "loss": 3.0},
    ]
    for row in rows:
        jsonl.append(place / "runs" / "orz-tiny-seed7" / "metrics.jsonl", row | {"cpu_s": 1.0})
    recorded(place)
    for value in ("loss", "eval/error"):  # neither has a standard error, the loss none at the start
        jsonl.write_text_atomic(place / "evals" / "plots" / "mine.yaml", PLOT.replace("avg@1", f"x, value: {value}"))
        assert tables.generate(root=place) == 0


def test_a_plot_is_drawn_from_recorded_curves_and_a_stale_one_is_found(place):
    jsonl.write_text_atomic(place / "evals" / "plots" / "mine.yaml", PLOT)
    recorded(place)
    with pytest.raises(ConfigError, match="has no curve"):
        tables.generate(root=place)
    rows = [{"step": step, "eval/accuracy": step / 10, "eval/stderr": 0.01, "cpu_s": 1.0} for step in (0, 5, 10)]
    for row in rows:
        jsonl.append(place / "runs" / "orz-tiny-seed7" / "metrics.jsonl", row)
    stored = json.loads(recorded(place).read_text())["curve"]
    assert [row["eval/accuracy"] for row in stored] == [0.0, 0.5, 1.0]
    assert tables.generate(check=True, root=place) == 1
    assert not (place / "docs" / "curves.svg").exists()
    assert tables.generate(root=place) == 0
    drawn = (place / "docs" / "curves.svg").read_text()
    assert drawn.startswith("<?xml")
    assert tables.generate(check=True, root=place) == 0
    jsonl.append(place / "runs" / "orz-tiny-seed7" / "metrics.jsonl", {**rows[0], "step": 15})
    recorded(place)
    assert tables.generate(check=True, root=place) == 1
