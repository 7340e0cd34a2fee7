"""Benchmark tables: figures from files, marks where they may not be compared, three formats."""

from __future__ import annotations

import re

import pytest

from stepstack.config import ConfigError
from stepstack.report import formats, jsonl, layout
from stepstack.report.formats import Table, TableCell
from stepstack.report.provenance import provenance

SAMPLING = {
    "n": 1,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": -1,
    "max_tokens": 64,
    "max_length": None,
    "stop": ["User:"],
    "seed": 0,
}


def result(task, value, *, metric="avg@1", n=1024, rows="a" * 64, version=1, failed=(0, 0), higher=True, **sampling):
    """A result.json, as far as tables look at it."""
    sampling = SAMPLING | sampling
    figure = {"name": metric, "value": value, "stderr": 0.0125, "n": n, "higher_is_better": higher}
    return {
        "kind": "eval",
        "task": task,
        "version": version,
        "metrics": [figure, {**figure, "name": "other", "value": 0.5}],
        "n": n,
        "k": sampling["n"],
        "samples": n * sampling["n"],
        "failed": {"engine": failed[0], "grader": failed[1]},
        "truncated": 0,
        "length": 12.5,
        "plan": {"task": task, "version": version, "n": n, "rows": rows, "sampling": sampling},
        "provenance": {**provenance(), "commit": "d076faf588d411af", "dirty": False, "time": "2026-11-23T10:00:00"},
    }


PUBLISHED = {
    "percent": False,
    "sources": {"one": "A paper", "two": "Another paper"},
    "rows": [
        {"key": "big", "source": "two", "values": {"sums": 0.99}},
        {"key": "bigger", "source": "one", "values": {"sums": 1, "more": 0.97}},
    ],
}
LAYOUT = """
title: Sums & more
columns:
  - {task: sums, metric: avg@1, head: sums of 5_7}
  - {task: more, metric: avg@1}
rows:
  - {model: base, results: run1, label: before}
  - {model: trained, results: run1, label: after}
"""


@pytest.fixture
def place(tmp_path):
    """A root with one layout, one run and one publication; ``write`` adds results of runs."""

    def write(name, **evals):
        jsonl.write_json_atomic(tmp_path / "evals" / "results" / f"{name}.json", {"kind": "run", "evals": evals})

    def lay(text, name="x"):
        jsonl.write_text_atomic(tmp_path / "evals" / "tables" / f"{name}.yaml", text)

    write(
        "run1",
        before=[result("sums", 0.184), result("more", 0.5, n=256)],
        after=[result("sums", 0.942), result("more", 0.25, n=256)],
    )
    jsonl.write_json_atomic(tmp_path / "evals" / "reported" / "pub.json", PUBLISHED)
    lay(LAYOUT)
    return tmp_path, write, lay


def table(place, format="md"):
    return layout.render("x", format, place[0])


def test_values_errors_best_and_footer(place):
    text = table(place)
    assert text.startswith("**Sums & more**\n\n| model | sums of 5_7 | more |\n|---|---|---|\n")
    assert "| base | 0.184 ± 0.013 | **0.500 ± 0.013** |\n" in text
    assert "| trained | **0.942 ± 0.013** | 0.250 ± 0.013 |\n" in text
    how = "k=1, T=1, top_p=1, max_tokens=64"
    assert f"measured, value ± standard error: sums n=1024, {how}; more n=256, {how}; d076faf588d4, 2026-11-23," in text
    assert "†" not in text
    assert text.count("d076faf588d4") == 1


def test_less_may_be_better_and_one_measured_row_has_no_best(place):
    _, write, lay = place
    write("run1", before=[result("sums", 3.0, higher=False)], after=[result("sums", 2.0, higher=False)])
    text = table(place)
    assert "| base | 3.000 ± 0.013 | - |" in text
    assert "| trained | **2.000 ± 0.013** | - |" in text
    lay(LAYOUT.replace("  - {model: base, results: run1, label: before}\n", ""))
    assert "| trained | 2.000 ± 0.013 | - |" in table(place)


def test_seeds_are_averaged(place):
    _, write, lay = place
    for seed, value in ((2, 0.92), (3, 0.878)):
        write(f"run{seed}", after=[result("sums", value, seed=seed)])
    lay(LAYOUT.replace("results: run1, label: after", "results: [run1, run2, run3], label: after"))
    with pytest.raises(ConfigError, match=r"evals/results/run2.json, after: no task 'more'"):
        table(place)
    write("run1", before=[result("sums", 0.2)], after=[result("sums", 0.942)])
    text = table(place)
    assert "| trained | **0.913 ± 0.019 (3 seeds)** | - |" in text
    assert "value ± standard error over seeds (mean and its standard error): " in text
    assert "†" not in text  # seeds may differ


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"n": 256, "rows": "b" * 64}, "n differs (1024, 256)"),
        ({"rows": "b" * 64}, "rows differs (aaaaaaaa, bbbbbbbb)"),
        ({"version": 2}, "version differs (1, 2)"),
        ({"temperature": 0.6, "max_tokens": 96}, "temperature differs (1.0, 0.6); max_tokens differs (64, 96)"),
        ({"n_samples": 4}, None),
    ],
)
def test_what_may_not_be_compared_is_marked(place, changes, note):
    _, write, _ = place
    other = result("sums", 0.9)
    if note is None:
        other["plan"]["sampling"]["n"] = changes["n_samples"]
        note = "samples a question differs (1, 4)"
    else:
        other = result("sums", 0.9, **changes)
    write("run1", before=[result("sums", 0.2)], after=[other])
    text = table(place)
    assert f"\n\n† sums: {note}\n\n" in text
    assert "| base | 0.200 ± 0.013† | - |" in text
    assert "| trained | 0.900 ± 0.013† | - |" in text  # and none is called the best
    assert "<sup>†</sup>" in table(place, "html")
    assert "\\textsuperscript{$\\dagger$}" in table(place, "tex")


def test_tasks_of_lm_eval_have_no_sampling_and_may_have_no_error(place):
    _, write, _ = place
    built = []
    for value, shots in ((0.2, 0), (0.9, 5)):
        one = result("sums", value)
        one["metrics"][0]["stderr"] = None
        one["plan"] = {
            "task": "sums",
            "version": 1.0,
            "n": 1024,
            "rows": "a",
            "config": "c",
            "shots": shots,
            "seed": value,
        }
        built.append(one)
    write("run1", before=built[:1], after=built[:1])
    assert "| base | **0.200** | - |" in table(place)
    assert ": sums n=1024, k=1, shots=0; d076" in table(place)
    write("run1", before=built[:1], after=built[1:])
    assert "† sums: shots differs (0, 5)\n" in table(place)


def test_failed_samples_are_marked(place):
    _, write, _ = place
    write("run1", before=[result("sums", 0.2, failed=(2, 1))], after=[result("sums", 0.9)])
    text = table(place)
    assert "| base | 0.200 ± 0.013‡ | - |" in text
    assert "\n\n‡ sums, base: 3 of 1024 samples failed (engine 2, grader 1), not counted\n\n" in text


def test_reported_rows_are_italic_cited_and_never_the_best(place):
    lay = place[2]
    lay(LAYOUT + "  - {model: B, reported: pub, key: bigger}\n  - {model: A, reported: pub, key: big}\n")
    text = table(place)
    assert "| B | *1.0* [1] | *0.97* [1] |\n| A | *0.99* [2] | - |\n" in text
    assert "**0.942 ± 0.013**" in text
    assert text.endswith(
        "\n\n[1] reported, not measured by us: A paper\n\n[2] reported, not measured by us: Another paper\n"
    )
    assert "<td><em>0.99</em> [2]</td>" in table(place, "html")
    assert "\\emph{0.99} {[}2]" in table(place, "tex")


def test_published_counts_are_shown_as_such(place):
    root, _, lay = place
    rows = [{"key": "votes", "source": "one", "counts": {"sums": [12, 3, 0]}}]
    jsonl.write_json_atomic(root / "evals" / "reported" / "pub.json", PUBLISHED | {"rows": rows})
    lay(LAYOUT + "  - {model: A against B, reported: pub, key: votes}\n")
    assert "| A against B | *12-3-0* [1] | - |" in table(place)


def test_percent(place):
    root, _, lay = place
    lay("percent: true\n" + LAYOUT)
    assert "| base | 18.4 ± 1.2 | **50.0 ± 1.2** |" in table(place)
    lay("percent: true\n" + LAYOUT + "  - {model: B, reported: pub, key: bigger}\n")
    with pytest.raises(ConfigError, match=r"evals/reported/pub.json: percent is False, the layout's True"):
        layout.render("x", "md", root)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("head:", "haed:", r"^evals/tables/x.yaml: columns.0.haed: unknown key$"),
        ("metric: avg@1}", "metric: 1}", r"x.yaml: columns.1.metric: Input should be a valid string"),
        ("title: Sums & more\n", "", r"x.yaml: title: .*required"),
        ("label: after", "labl: after", r"x.yaml: rows.1.label: .*\n.*rows.1.labl: unknown key; a row has"),
        ("label: after}", "label: after, reported: pub, key: big}", r"x.yaml: rows.1.results: unknown key; a row has"),
        ("columns:", "columns: []\nx:", r"x.yaml: columns: .*at least 1"),
        ("results: run1, label: after", "results: run9, label: after", r"evals/results/run9.json does not exist"),
        ("label: after", "label: later", r"evals/results/run1.json has no label 'later': there are before, after"),
        (
            "metric: avg@1}",
            "metric: avg@16}",
            r"run1.json, before: more has no metric 'avg@16': there are avg@1",
        ),
        (
            "results: run1, label: after",
            "reported: pub, key: huge",
            r"pub.json has no row 'huge': there are big, b",
        ),
        ("results: run1, label: after", "reported: no, key: huge", r"rows.1.reported: Input should be a valid string"),
        ("results: run1, label: after", "reported: gone, key: x", r"evals/reported/gone.json does not exist"),
        ("title: Sums & more", "title: [", r"x.yaml: not YAML"),
    ],
)
def test_bad_layouts_name_file_and_key(place, old, new, message):
    assert old in LAYOUT
    place[2](LAYOUT.replace(old, new))
    with pytest.raises(ConfigError, match=message):
        table(place)


def test_results_that_cannot_be_meant(place):
    root, write, _ = place
    write("run1", before=[result("sums", 0.2), result("sums", 0.3, n=256)], after=[])
    with pytest.raises(ConfigError, match=r"run1.json, before: sums was evaluated with avg@1 2 times"):
        table(place)
    write("run1", before=[result("sums", None)], after=[])
    with pytest.raises(ConfigError, match=r"run1.json, before: avg@1 of sums has no value: every sample failed"):
        table(place)
    jsonl.write_json_atomic(root / "evals" / "results" / "run1.json", {"kind": "run", "before": {}})
    with pytest.raises(ConfigError, match=r"evals/results/run1.json has no key 'evals': record the run again"):
        table(place)
    with pytest.raises(ConfigError, match=r"evals/tables/y.yaml does not exist; there are x"):
        layout.render("y", "md", root)


def test_the_layouts_of_the_repository_are_valid():
    assert {"orz-reported", "orz-tiny-tasks"} <= set(layout.names())
    for name in layout.names():
        layout.load(name)


def test_escapes():
    nasty = r"a|b*c<d>&_%$#{}~^\[1] ±"
    result = Table(
        ["x", nasty], [[TableCell(nasty, bold=True), TableCell("1", italic=True, marks=("†", "[1]"))]], [nasty], nasty
    )
    md, tex, page = (formats.render([result], format) for format in ("md", "tex", "html"))
    assert r"| x | a\|b\*c&lt;d>&_%$#{}~^\\[1] ± |" in md
    escaped = r"a$|$b*c$<$d$>$\&\_\%\$\#\{\}\textasciitilde{}\textasciicircum{}\textbackslash{}{[}1] $\pm$"
    assert f"x & {escaped} \\\\\n" in tex
    assert f"\\textbf{{{escaped}}} & \\emph{{1}}\\textsuperscript{{$\\dagger$}} {{[}}1] \\\\\n" in tex
    assert f"\\caption{{{escaped}}}" in tex
    assert "<strong>a|b*c&lt;d&gt;&amp;_%" in page
    assert "<em>1</em><sup>†</sup> [1]" in page
    assert not re.search(r"<(?!/?(table|caption|tr|td|th|strong|em|sup|p)\b)", page)


def test_latex_has_booktabs_rules_and_balanced_braces(place):
    place[2](LAYOUT + "  - {model: B, reported: pub, key: bigger}\n")
    tex = table(place, "tex")
    rules = ["\\toprule", "\\midrule", "\\bottomrule"]
    assert [line for line in tex.splitlines() if line.endswith("rule")] == rules
    assert "\\begin{tabular}{lrr}" in tex
    assert "base & 0.184 $\\pm$ 0.013 & \\textbf{0.500 $\\pm$ 0.013} \\\\" in tex
    bare = re.sub(r"\\[{}]", "", tex)
    assert bare.count("{") == bare.count("}")
    assert sorted(re.findall(r"\\begin{(\w+)}", tex)) == sorted(re.findall(r"\\end{(\w+)}", tex))


def test_a_row_may_name_its_own_split_of_the_columns_task(place):
    _, write, lay = place
    write("thinking", after=[result("test", 0.7, max_tokens=96)])
    lay("""
title: Sums
columns: [{task: sums, metric: avg@1}, {task: sums, metric: other}]
rows:
  - {model: base, results: run1, label: before}
  - {model: thinking, results: thinking, label: after, task: test}
""")
    text = table(place)
    assert "| thinking | 0.700 ± 0.013† | 0.500 ± 0.013† |" in text
    assert text.count("† sums: max_tokens differs (64, 96)") == 1
    assert "sums n=1024, k=1, T=1, top_p=1, max_tokens=64 or n=1024, k=1, T=1, top_p=1, max_tokens=96" in text
