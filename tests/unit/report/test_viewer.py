"""The samples page: complete, safe whatever a model wrote, and its script does what it says in a real browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from stepstack.config import ROOT
from stepstack.report import jsonl, viewer

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EVIL = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">\u2028"
HALF = "\ud83d"  # half a surrogate pair: no UTF-8 can hold it


def sample(index=0, number=0, score=1.0, **changes):
    row = {
        "index": index,
        "sample": number,
        "problem": f"problem {index}",
        "gold": str(index),
        "prompt": f"prompt {index}",
        "text": f"response {index}.{number}",
        "ids": [1, 2],
        "tokens": 2,
        "finish": "stop",
        "answer": str(index) if score else "no",
        "score": score,
        "failure": None,
        "parts": {"format": 1.0},
    }
    return row | changes


def evaluation(folder: Path, rows, *, task="sums", temperature=1.0, **changes) -> Path:
    """A folder as the harness leaves it."""
    n, k = len({row["index"] for row in rows}), max(row["sample"] for row in rows) + 1
    scores = [row["score"] for row in rows if row["score"] is not None]
    metric = {"name": f"avg@{k}", "value": sum(scores) / len(scores), "stderr": 0.0125, "n": n}
    result = {
        "kind": "eval",
        "task": task,
        "version": 3,
        "metrics": [metric | {"higher_is_better": True}],
        "n": n,
        "k": k,
        "samples": len(rows),
        "failed": {"engine": sum(row["finish"] == "error" for row in rows), "grader": 0},
        "truncated": sum(row["finish"] == "length" for row in rows),
        "tokens": 2 * len(rows),
        "length": 2.0,
        "plan": {"sampling": {"n": k, "temperature": temperature, "top_k": -1, "stop": ["User:"], "seed": 0}},
        "model": {"name": "runs/x/model", "sha256": "abcdef0123456789"},
        "provenance": {"commit": "d076faf588d411af", "dirty": False},
    }
    jsonl.write_json_atomic(folder / "result.json", result | changes)
    jsonl.write_rows_atomic(folder / "samples.jsonl", rows)
    return folder


def data_of(page: Path):
    text = page.read_text()
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.DOTALL)[1])


@pytest.fixture
def two(tmp_path):
    """120 questions before and after: question i was right before if i % 3 == 0, and is right after if i % 2 == 0."""
    before = [sample(i, score=float(i % 3 == 0)) for i in range(120)]
    after = [sample(i, score=float(i % 2 == 0), text=f"response {i}.0 of b") for i in range(120)]
    after[4] |= {"finish": "length", "score": 0.0, "answer": None, "text": "wait, " * 900 + "the end"}
    after[5] |= {"finish": "error", "score": None, "answer": None, "text": "", "failure": "engine: HTTP 500"}
    folders = {"before": [evaluation(tmp_path / "a", before)], "after": [evaluation(tmp_path / "b", after)]}
    return viewer.write(tmp_path / "samples.html", folders)


def test_a_page_holds_every_sample_and_needs_no_network(two):
    data = data_of(two)
    assert data["labels"] == ["before", "after"]
    [task] = data["tasks"]
    assert [q["index"] for q in task["questions"]] == list(range(120))
    first = task["questions"][0]
    assert (first["problem"], first["gold"]) == ("problem 0", "0")
    assert first["by"][0]["samples"] == [
        {"text": "response 0.0", "tokens": 2, "finish": "stop", "answer": "0", "score": 1.0, "parts": {"format": 1.0}}
    ]
    failed = task["questions"][5]["by"][1]["samples"][0]
    assert "score" not in failed
    assert failed["failure"] == "engine: HTTP 500"
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//|url\(|@import|fetch\(|XMLHttp", two.read_text())


def test_the_summary_says_what_was_measured_and_how(two):
    table = two.read_text().partition('<main id="main">')[0]
    for cell in ("sums</a> <small>v3</small>", "avg@1 0.333 ± 0.013", "120 x 1", "engine 1", "1 of 120"):
        assert cell in table
    assert "temperature=1, seed=0<" in table
    assert "abcdef012345<" in table
    assert "d076faf5<" in table


def test_two_models_are_tested_against_each_other(two):
    text = data_of(two)["tasks"][0]["paired"]
    assert "after is better than before by 0.160" in text
    assert "of 119 questions; 1 without a verdict are left out" in text


def test_other_questions_stand_side_by_side_but_are_not_tested(tmp_path):
    a = evaluation(tmp_path / "a", [sample(0), sample(1)])
    b = evaluation(tmp_path / "b", [sample(0), sample(1, problem="another one")])
    [task] = data_of(viewer.write(tmp_path / "x.html", {"a": [a], "b": [b]}))["tasks"]
    assert task["paired"].startswith("a and b are not compared: question 1: problem differs")
    assert [[column is not None for column in q["by"]] for q in task["questions"]] == [[1, 1], [0, 1], [1, 0]]


def test_prompts_are_stored_once_and_ids_not_at_all(tmp_path):
    rows = [sample(0, number, prompt="PROMPT" * 50) for number in range(16)]
    folders = {label: [evaluation(tmp_path / label, rows)] for label in "ab"}
    text = viewer.write(tmp_path / "x.html", folders).read_text()
    assert text.count("PROMPT" * 50) == 1
    assert '"ids"' not in text


def test_text_of_a_model_cannot_end_the_script(tmp_path):
    row = sample(text=EVIL + HALF, problem=EVIL, answer=EVIL, gold=EVIL, prompt=EVIL, parts={"x": float("nan")})
    page = viewer.write(tmp_path / "x.html", {EVIL: [evaluation(tmp_path / "a", [row])]})
    text = page.read_text()
    assert text.count("<script") == text.count("</script") == 2
    assert "<img" not in text
    assert "\u2028" not in text.partition('<script id="data"')[2]
    stored = data_of(page)["tasks"][0]["questions"][0]
    assert stored["problem"] == EVIL
    assert stored["by"][0]["samples"][0]["text"] == EVIL + HALF
    assert stored["by"][0]["samples"][0]["parts"] == {"x": "nan"}


def test_tasks_of_one_name_are_told_apart_by_how_they_were_sampled(tmp_path):
    once = evaluation(tmp_path / "once", [sample()])
    greedy = evaluation(tmp_path / "greedy", [sample()], temperature=0.0)
    many = evaluation(tmp_path / "many", [sample(0, number) for number in range(4)])
    tasks = data_of(viewer.write(tmp_path / "x.html", {"a": [once, greedy, many]}))["tasks"]
    assert [task["key"] for task in tasks] == ["sums", "sums greedy", "sums x4"]
    with pytest.raises(ValueError, match=r"a: .*again and .*once are both sums: give one of them"):
        viewer.write(tmp_path / "x.html", {"a": [once, evaluation(tmp_path / "again", [sample()])]})


def test_a_group_of_lm_eval_has_figures_and_no_samples(tmp_path):
    one = evaluation(tmp_path / "a", [sample()])
    changes = {"plan": {"task": "g", "shots": 5}, "length": None}
    group = evaluation(tmp_path / "g", [sample()], task="lm_eval:g", **changes)
    result = json.loads((group / "result.json").read_text())
    result["metrics"][0]["stderr"] = None
    jsonl.write_json_atomic(group / "result.json", result)
    jsonl.write_rows_atomic(group / "samples.jsonl", [])
    page = viewer.write(tmp_path / "x.html", {"a": [one, group], "b": [group]})
    assert "<td>avg@1 1.000</td>" in page.read_text()
    assert "<td>shots=5</td>" in page.read_text()
    assert data_of(page)["tasks"][1]["questions"] == []


def test_what_cannot_be_shown(tmp_path):
    with pytest.raises(ValueError, match="no evaluation to show"):
        viewer.write(tmp_path / "x.html", {"a": []})
    with pytest.raises(ValueError, match=r"result.json does not exist: the evaluation is not finished"):
        viewer.write(tmp_path / "x.html", {"a": [tmp_path / "nowhere"]})
    one = evaluation(tmp_path / "a", [sample()])
    with pytest.raises(ValueError, match="a, b, c: a page shows one model, or two side by side"):
        viewer.write(tmp_path / "x.html", {"a": [one], "b": [one], "c": [one]})


def test_clips_pictures_and_sounds_are_named_from_the_page(tmp_path):
    rows = [sample(media=["runs/x/a b.mp4", "runs/x/a.png", "runs/x/a.wav"], text=""), sample(1)]
    folder = evaluation(tmp_path / "a", rows)
    page = viewer.write(tmp_path / "pages" / "x.html", {"model": [folder]})
    samples = [question["by"][0]["samples"][0] for question in data_of(page)["tasks"][0]["questions"]]
    assert [(page.parent / file).resolve() for file in samples[0]["media"]] == [
        ROOT / "runs" / "x" / name for name in ("a b.mp4", "a.png", "a.wav")
    ]
    assert "media" not in samples[1]


def test_a_budget_of_clips_is_said_as_it_is(tmp_path):
    folder = evaluation(tmp_path / "a", [sample(media=["a.mp4"])])
    result = json.loads((folder / "result.json").read_text())
    result["plan"] = {"clips": {"n": 1, "seed": 7}}
    jsonl.write_json_atomic(folder / "result.json", result)
    page = viewer.write(tmp_path / "x.html", {"model": [folder]}).read_text()
    assert "seed=7" in page
    assert "temperature" not in page


# ---- in a browser


@pytest.fixture
def browse(tmp_path):
    """(page, hash, script to run after the page's own) -> the document as HTML."""
    if CHROMIUM is None:
        pytest.skip("no chromium on PATH: the page's script can only be tested in a browser")

    def dump(page: Path, hash: str, then: str = "") -> str:
        if then:  # the page's policy lets no other script run, which is the point of it
            text = re.sub(r'<meta http-equiv="Content-Security-Policy".*?">', "", page.read_text())
            page = tmp_path / "with-script.html"
            page.write_text(text.replace("</html>", f"<script>{then}</script></html>"))
        flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        line = [CHROMIUM, *flags, "--virtual-time-budget=2000", "--dump-dom", f"{page.as_uri()}#{hash}"]
        return subprocess.run(line, capture_output=True, text=True, timeout=60, check=True).stdout

    return dump


def shown(dom: str) -> list[int]:
    """Numbers of the questions in the document."""
    return [int(number) for number in re.findall(r"<header><b>#(\d+)</b>", dom)]


def filters(dom: str) -> dict[str, str]:
    return dict(re.findall(r'data-name="(\w+)">([^<]*)</button>', dom))


def test_fifty_questions_at_a_time_and_filters_with_counts(two, browse):
    dom = browse(two, "")
    assert shown(dom) == list(range(50))
    assert ">1 to 50 of 120<" in dom
    before, after = set(range(0, 120, 3)), set(range(0, 120, 2)) - {4}
    first, second = len(before - after), len(after - before)
    assert filters(dom) == {
        "all": "all 120",
        "right": f"right {len(before | after)}",
        "wrong": f"wrong {120 - len(before & after)}",
        "truncated": "truncated 1",
        "failed": "failed 1",
        "first": f"before right, after wrong {first}",
        "second": f"after right, before wrong {second}",
        "differ": f"differ {first + second}",
    }
    assert "after is better than before" in re.search(r'<p id="paired">(.*?)</p>', dom)[1]


VIEWS = {
    "show=second": sorted(set(range(0, 120, 2)) - set(range(0, 120, 3)) - {4})[:50],
    "show=first&at=2": list(range(3, 120, 6)),
    "show=right&of=before": list(range(0, 120, 3)),
    "show=truncated": [4],
    "show=failed": [5],
    "find=the+END": [4],
    "find=problem+11&show=right&of=after": [110, 112, 114, 116, 118],
    "find=.*": [],
    "at=101": list(range(100, 120)),
    "show=nonsense&at=-3&task=none": list(range(50)),
}


def test_the_hash_keeps_a_view(two, browse):
    assert shown(browse(two, "show=failed")) == [5]
    then = f"""
      const seen = {{}};
      for (const hash of {json.dumps(list(VIEWS))}) {{
        history.replaceState(null, "", "#" + hash);
        read();
        seen[hash] = [...document.querySelectorAll(".card header b")].map((b) => Number(b.textContent.slice(1)));
      }}
      document.title = JSON.stringify(seen);
    """
    title = re.search(r"<title>(.*?)</title>", browse(two, "", then))
    assert json.loads(html.unescape(title[1])) == VIEWS


def test_keys_walk_over_pages_and_the_hash_follows(two, browse):
    keys = "".join(f"document.dispatchEvent(new KeyboardEvent('keydown', {{key: '{key}'}}));" for key in "jjk")
    dom = browse(two, "at=49", keys + "document.title = location.hash;")
    assert shown(dom) == list(range(50))  # 49, 50, 51 on the next page, and back
    assert "<title>#task=sums&amp;at=50</title>" in dom
    assert re.search(r'<article class="card current" data-place="49">', dom)
    dom = browse(two, "at=49", keys[: 2 * len(keys) // 3])
    assert shown(dom) == list(range(50, 100))


def test_chips_folds_and_links_work(tmp_path, browse):
    rows = [sample(0, number, float(number % 2), text=f"answer number {number} " + "x" * 5000) for number in range(4)]
    tasks = [evaluation(tmp_path / "a", [sample(7)], task="plain"), evaluation(tmp_path / "b", rows, task="many")]
    page = viewer.write(tmp_path / "x.html", {"model": tasks})
    dom = browse(page, "task=many+x4&show=right")
    assert re.findall(r'class="chip (\w+)" title="[^"]*" aria-pressed="(\w+)"', dom) == [
        ("wrong", "false"),
        ("right", "true"),
        ("wrong", "false"),
        ("right", "false"),
    ]
    assert "2 of 4 right" in dom
    assert "answer number 1" in dom  # the first that is right
    assert "answer number 0" not in dom.partition('<main id="main">')[2].partition('<script id="data"')[0]
    assert "characters … show all" in dom
    assert "x" * 4000 not in dom.partition('<script id="data"')[0]
    clicks = "document.querySelectorAll('.chip')[2].click(); document.querySelector('.more').click();"
    dom = browse(page, "task=many+x4", clicks).partition('<script id="data"')[0]
    assert "answer number 2 " + "x" * 5000 in dom
    dom = browse(page, "task=many+x4", "document.querySelector('a[href=\"#task=plain\"]').click();")
    assert shown(dom) == [7]


def test_what_a_model_wrote_does_not_run(tmp_path, browse):
    row = sample(text=EVIL, problem=EVIL, answer=EVIL, gold=EVIL, prompt=EVIL, failure=EVIL)
    page = viewer.write(tmp_path / "x.html", {"model": [evaluation(tmp_path / "a", [row])]})
    for then in ("", "document.querySelector('.prompt').open = true;"):  # with the page's policy, and without it
        dom = browse(page, "", then)
        assert "<title>Samples: model</title>" in dom
        assert "&lt;script&gt;document.title='owned'" in dom
        assert "<img" not in dom.partition('<script id="data"')[0]


def test_a_clip_is_shown_and_no_response_is_missed(tmp_path, browse):
    rows = [sample(media=["a b.mp4", "a.png", "a.wav"], text="", answer=None)]
    dom = browse(viewer.write(tmp_path / "x.html", {"model": [evaluation(tmp_path / "a", rows)]}), "")
    assert re.search(r'<video src="[^"]*/a%20b\.mp4" controls', dom)
    assert re.search(r'<img src="[^"]*/a\.png"', dom)
    assert re.search(r'<audio src="[^"]*/a\.wav" controls', dom)
    for absent in ("empty response", "no answer", "2 tokens"):
        assert absent not in dom.partition("<script")[0]
