"""Preparing ORZ's data: every bad row is named, duplicates and eval problems go, a folder is whole or absent."""

import hashlib
import json
import os
import re
from pathlib import Path

import pytest

from data.errors import DataError
from data.prepare import manifest
from data.prepare.manifest import named_sources, read_manifest
from data.sets import orz_math
from data.sets.orz_math import hard_set, load, prepare
from recipes import protocol
from recipes.protocol import load_config
from stepstack.records import Problem
from stepstack.scoring.text.overlap import overlap

SHARED = Path(os.environ.get("STEPSTACK_SHARED", Path(__file__).parents[2].parent / "shared")) / "data" / "orz"
LONG = "A train leaves the old station at noon and travels north at sixty miles per hour until it stops"


def train_row(problem: str, gold: str) -> list:
    return [{"from": "human", "value": problem}, {"from": "assistant", "ground_truth": {"value": gold}}]


def eval_row(problem: str, gold: str, **more) -> dict:
    return {"prompt": [{"from": "user", "value": problem}], "final_answer": gold, **more}


def write(path: Path, rows) -> str:
    path.write_text(json.dumps(rows))
    return str(path)


@pytest.fixture
def evals(tmp_path):
    aime = write(tmp_path / "aime2024.json", [eval_row(f"{LONG}. Find $x+1$.", "12"), eval_row("Find $2+3$.", "5")])
    choices = {"A": "one", "B": "two"}
    gpqa = write(tmp_path / "gpqa.json", [eval_row("Which is even?\nA. one\nB. two", "B", choices=choices)])
    return [aime, gpqa]


def test_prepare_counts_what_it_drops_and_loads_the_rest(tmp_path, evals):
    rows = [
        train_row("What is $1+1$?", "2"),
        train_row("What  is\n$1+1$? ", "2"),  # duplicate but for white space
        train_row("What is $1+1$?", "3"),  # duplicate with another answer
        train_row("What is $1-1$?", "0"),  # no duplicate: operators count
        train_row("find 2 + 3.", "5"),  # a short eval problem, whole
        train_row("Find $2+3$. Then add 1.", "6"),  # contains it, under 13 words: stays
        train_row(f"Once more: {LONG.lower()}, yes", "7"),  # more than 13 shared words
        train_row(" ".join(LONG.split()[:12]) + " ends", "8"),  # 12 shared words: stays
    ]
    out = tmp_path / "prepared"
    manifest = prepare(out, write(tmp_path / "train.json", rows), evals, rows_per_shard=2)
    assert manifest.counts == {
        "read": 8,
        "empty_gold": 0,
        "duplicates": 2,
        "conflicts": 1,
        "contaminated": 2,
        "kept": 4,
        "contaminated_by": {"aime2024": {"exact": 1, "ngram": 1}, "gpqa": {"exact": 0, "ngram": 0}},
        "evals": {"aime2024": 2, "gpqa": 1},
        "unreadable": 0,
        "unreadable_golds": [],
    }
    assert manifest == read_manifest(out / "manifest.json")
    assert sorted(os.listdir(out)) == [
        "aime2024.jsonl",
        "gpqa.jsonl",
        "manifest.json",
        "train-00000-of-00002.jsonl",
        "train-00001-of-00002.jsonl",
    ]
    train = load(out, "train")
    assert [(p.index, p.gold) for p in train] == [(0, "2"), (1, "0"), (2, "6"), (3, "8")]
    assert train[0].text == "What is $1+1$?"
    assert train[0].meta == {"source": str(tmp_path / "train.json")}
    assert load(out / "manifest.json", "gpqa")[0].meta["choices"] == {"A": "one", "B": "two"}
    for name, info in manifest.files.items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == info["sha256"]


def test_the_same_input_gives_the_same_bytes(tmp_path, evals):
    source = write(tmp_path / "train.json", [train_row("a", "1"), train_row("b", "2")])
    first, second = (prepare(tmp_path / name, source, evals) for name in ("one", "two"))
    assert first == second


def test_all_bad_rows_are_reported_together_and_nothing_is_written(tmp_path, evals):
    rows = [
        train_row("fine", "1"),
        [{"from": "human", "value": "p"}],
        [{"from": "human", "value": "p"}, {"from": "assistant", "ground_truth": {}}],
        [{"from": "human", "value": "p"}, {"from": "assistant", "ground_truth": {"value": 4}}],
        train_row("no answer", " "),
        train_row("boxed nothing", r"\boxed{}"),
        [{"from": "assistant", "value": "p"}, {"from": "human", "ground_truth": {"value": "4"}}],
        train_row("", "1"),
        "text",
    ]
    source = write(tmp_path / "train.json", rows)
    bad_eval = write(tmp_path / "bad.json", [eval_row("q", "E", choices={"A": "x"}), {"final_answer": "1"}])
    with pytest.raises(DataError) as caught:
        prepare(tmp_path / "out", source, [*evals, bad_eval])
    lines = str(caught.value).splitlines()
    assert lines[0] == "10 bad rows, nothing written:"
    for place, words in [
        ("train.json row 2", "found list of 1"),
        ("train.json row 3", "key [1].ground_truth.value is missing: expected"),
        ("train.json row 4", "key [1].ground_truth.value must be text, not int: put it in quotes"),
        ("train.json row 5", "the answer is empty, and an empty gold calls every empty answer correct"),
        ("train.json row 6", "the answer is empty"),
        ("train.json row 7", "are the two turns swapped?"),
        ("train.json row 8", "key [0].value is empty"),
        ("train.json row 9", "found str"),
        ("bad.json row 1", "key final_answer is 'E', not one of the choices A"),
        ("bad.json row 2", "key prompt must be a list of one turn"),
    ]:
        assert any(re.search(f"{place}[:,)]", line) and words in line for line in lines), (place, words, lines)
    assert not (tmp_path / "out").exists()


def test_golds_that_no_algebra_can_read_are_counted_and_listed(tmp_path, evals):
    golds = ["5", "See the proof above", "N/A", r"\frac{1}{2", r"\boxed{3} or \boxed{5}", r"\text{even}", "½"]
    source = write(tmp_path / "train.json", [train_row(f"problem {n}", gold) for n, gold in enumerate(golds)])
    counts = prepare(tmp_path / "out", source, evals).counts
    assert (counts["kept"], counts["unreadable"]) == (7, 4)
    assert counts["unreadable_golds"][1] == f"{source} row 3: 'N/A' is no answer"
    assert prepare(tmp_path / "text", source, evals, algebra=False).counts["unreadable"] == 0


def test_the_first_unreadable_gold_is_printed(tmp_path):
    golds = ["5", "None", "See the proof above"]
    source = write(tmp_path / "train.json", [train_row(f"problem {n}", gold) for n, gold in enumerate(golds)])
    data = f"data={{type: prepared, folder: {tmp_path / 'out'}, source: [{source}], evals: []}}"

    def line(name: str, grader: str) -> str:
        cfg = load_config("orz-7b", [data.replace("out", name), f"reward.grader={grader}"])
        return protocol.load(cfg.recipe).prepare(cfg)

    first = line("first", "math_verify").splitlines()[-1]
    assert first.startswith(f"2 golds cannot be read as mathematics, and are matched by their spelling alone: {source}")
    assert "'None' is no answer, and 1 more" in first
    assert "cannot be read" not in line("second", "exact")


def test_a_reason_is_said_once(tmp_path):
    source = write(tmp_path / "train.json", [[] for _ in range(33)])
    with pytest.raises(DataError) as caught:
        prepare(tmp_path / "out", source, [])
    assert str(caught.value).startswith("33 bad rows")
    assert str(caught.value).endswith("train.json row 4 and 29 more)")
    assert len(str(caught.value).splitlines()) == 2


def test_empty_answers_can_be_dropped_and_counted(tmp_path):
    source = write(tmp_path / "train.json", [train_row("p", ""), train_row("q", "1")])
    manifest = prepare(tmp_path / "out", source, [], drop_empty=True)
    assert (manifest.counts["empty_gold"], manifest.counts["kept"]) == (1, 1)
    assert manifest.options["drop_empty"] is True
    blank = write(tmp_path / "blank.json", [eval_row("p", "")])
    with pytest.raises(DataError, match=r"blank.json row 1: the answer is empty"):
        prepare(tmp_path / "other", source, [blank], drop_empty=True)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'[\n{"x": 1},\n{]', r"a.json line 3 column 2: not JSON: .*; download it again"),
        ("a.jsonl", b'[]\n{"x": ]\n', r"a.jsonl line 2 column 7: not JSON"),
        ("a.json", b"\xff\xfe", r"a.json: not UTF-8 at byte 0"),
        ("a.json", b"version https://git-lfs.github.com/spec/v1\n", r"a.json: a Git LFS pointer.*git lfs pull"),
        ("a.json", b'{"rows": []}', r"a.json: must be a list of rows, not dict"),
        ("a.json", b"[]", r"a.json: no rows"),
    ],
)
def test_unreadable_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        prepare(tmp_path / "out", str(tmp_path / name), [])


def test_a_missing_source_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.json does not exist: give a \.json"):
        prepare(tmp_path / "out", str(tmp_path / "nothing.json"), [])


def test_a_folder_of_lines_and_lists(tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    write(folder / "b.json", [train_row("second", "2")])
    (folder / "a.jsonl").write_text(json.dumps(train_row("first", "1")) + "\n\n")
    manifest = prepare(tmp_path / "out", str(folder), [])
    assert [p.text for p in load(tmp_path / "out", "train")] == ["first", "second"]
    assert set(manifest.sources[0]["sha256"]) == {"a.jsonl", "b.json"}


def test_rows_of_the_hub_are_the_same_pairs(tmp_path, monkeypatch):
    import datasets

    local = write(tmp_path / "rows.json", [train_row("p", "1"), train_row("q", "2")])
    read = datasets.load_dataset
    requests = []

    def load_dataset(name, split):
        requests.append((name, split))
        return read("json", data_files=local, split="train", cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    manifest = prepare(tmp_path / "out", "hf:Open-Reasoner-Zero/orz_math_57k_collection", [])
    assert requests == [("Open-Reasoner-Zero/orz_math_57k_collection", "train")]
    assert [p.gold for p in load(tmp_path / "out", "train")] == ["1", "2"]
    assert list(manifest.sources[0]["sha256"]) == ["Open-Reasoner-Zero/orz_math_57k_collection"]


def test_names_of_evals(tmp_path):
    assert named_sources(["hf:owner/aime@test"]) == {"aime": "hf:owner/aime@test"}
    assert named_sources(["mine=a/b.json"]) == {"mine": "a/b.json"}
    source = write(tmp_path / "x.json", [eval_row("p", "1")])
    with pytest.raises(DataError, match="each needs its own name"):
        prepare(tmp_path / "out", write(tmp_path / "t.json", [train_row("q", "1")]), [source, source])


def test_a_changed_file_is_refused(tmp_path):
    out = tmp_path / "out"
    prepare(out, write(tmp_path / "t.json", [train_row("q", "1")]), [])
    shard = out / "train-00000-of-00001.jsonl"
    shard.write_text(shard.read_text().replace('"1"', '"2"'))
    with pytest.raises(
        DataError, match=r"train-00000-of-00001.jsonl: sha256 is .* manifest.json says .* prepare it again"
    ):
        load(out, "train")
    with pytest.raises(DataError, match="no split 'aime2024'; there are train"):
        load(out, "aime2024")
    with pytest.raises(DataError, match="prepare the data first"):
        load(tmp_path / "elsewhere", "train")


def test_another_schema_is_refused(tmp_path):
    out = tmp_path / "out"
    prepare(out, write(tmp_path / "t.json", [train_row("q", "1")]), [])
    manifest = out / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"schema": 2', '"schema": 9'))
    with pytest.raises(DataError, match="schema 9, this version reads 2"):
        load(out, "train")


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_crash_in_the_middle_leaves_no_half_folder(tmp_path, monkeypatch, overwrite):
    source = write(tmp_path / "t.json", [train_row("q", "1")])
    out = tmp_path / "out"
    if overwrite:
        prepare(out, write(tmp_path / "old.json", [train_row("old", "1")]), [])
    before = sorted(os.listdir(tmp_path))

    def crash(path, content):
        if path.name == "manifest.json":
            raise OSError("disk full")
        path.write_bytes(content)

    monkeypatch.setattr(manifest, "write_synced", crash)
    with pytest.raises(OSError, match="disk full"):
        prepare(out, source, [], overwrite=overwrite)
    assert sorted(os.listdir(tmp_path)) == before
    if overwrite:
        assert [p.text for p in load(out, "train")] == ["old"]


def test_overwrite_replaces_only_a_prepared_folder(tmp_path):
    source = write(tmp_path / "t.json", [train_row("new", "1")])
    out = tmp_path / "out"
    prepare(out, write(tmp_path / "old.json", [train_row("old", "1")]), [])
    with pytest.raises(DataError, match="exists: remove it"):
        prepare(out, source, [])
    prepare(out, source, [], overwrite=True)
    assert [p.text for p in load(out, "train")] == ["new"]
    (tmp_path / "home").mkdir()
    with pytest.raises(DataError, match="not a prepared folder"):
        prepare(tmp_path / "home", source, [], overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["home", "old.json", "out", "t.json"]


def test_a_published_eval_is_read_without_preparing(tmp_path, evals):
    gpqa = orz_math.read_eval(evals[1])
    assert gpqa == [Problem(0, "Which is even?\nA. one\nB. two", "B", {"choices": {"A": "one", "B": "two"}})]
    lines = tmp_path / "aime.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in json.loads(Path(evals[0]).read_text())))
    aime = orz_math.read_eval(lines)
    assert aime == orz_math.read_eval(evals[0])
    assert [(p.index, p.gold, p.meta) for p in aime] == [(0, "12", {}), (1, "5", {})]


def test_a_published_eval_is_checked_as_prepare_does(tmp_path):
    rows = [eval_row("fine", "1"), eval_row("q", "E", choices={"A": "x"}), {"final_answer": "1"}, eval_row("p", "")]
    bad = write(tmp_path / "bad.json", rows)
    with pytest.raises(DataError) as caught:
        orz_math.read_eval(bad)
    first, *lines = str(caught.value).splitlines()
    assert first == "3 bad rows:"
    assert lines[0].endswith("bad.json row 2: key final_answer is 'E', not one of the choices A")
    assert "bad.json row 3: key prompt must be a list of one turn" in lines[1]
    assert "bad.json row 4: the answer is empty" in lines[2]
    with pytest.raises(DataError, match=r"nothing\.json does not exist: get it there"):
        orz_math.read_eval(tmp_path / "nothing.json", hint="get it there")
    with pytest.raises(DataError, match=r"nothing\.json does not exist: give a \.json"):
        orz_math.read_eval(tmp_path / "nothing.json")


def test_hard_set_is_fewer_than_four_of_sixty_four():
    problems = [Problem(i, str(i), "1") for i in range(6)]
    assert [p.index for p in hard_set(problems, [0, 3, 4, 64, 1, 5])] == [0, 1, 4]
    with pytest.raises(ValueError, match="6 problems but 1 counts"):
        hard_set(problems, [0])


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs {SHARED} (set STEPSTACK_SHARED): ORZ's eval data is not copied")
def test_orz_published_evals(tmp_path):
    evals = [str(SHARED / "aime2024.json"), str(SHARED / "math500.json")]
    source = write(tmp_path / "t.json", [train_row("q", "1")])
    manifest = prepare(tmp_path / "out", source, evals)
    assert manifest.counts["evals"] == {"aime2024": 30, "math500": 500}
    assert load(tmp_path / "out", "aime2024")[0].gold == "73"
    texts = {name: [p.text for p in load(tmp_path / "out", name)] for name in ("aime2024", "math500")}
    assert [row["exact"] for row in overlap(texts["math500"], texts)] == [0, 500]


def test_a_training_set_that_is_the_evals_is_refused(tmp_path):
    rows = [
        [{"from": "human", "value": f"what is {k} + 1?"}, {"from": "assistant", "ground_truth": {"value": "2"}}]
        for k in range(3)
    ]
    evals = [{"prompt": [{"from": "user", "value": row[0]["value"]}], "final_answer": "2"} for row in rows]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    (tmp_path / "val.json").write_text(json.dumps(evals))
    with pytest.raises(DataError, match=r"no train row is left \(.*'contaminated': 3.*: give a source whose problems"):
        prepare(tmp_path / "out", str(tmp_path / "train.json"), [str(tmp_path / "val.json")])
    assert not (tmp_path / "out").exists()


def test_a_gold_that_is_a_list_is_not_to_be_put_in_quotes(tmp_path):
    row = [{"from": "human", "value": "x"}, {"from": "assistant", "ground_truth": {"value": ["2"]}}]
    (tmp_path / "t.json").write_text(json.dumps([row]))
    with pytest.raises(DataError, match=r"must be text, not list: give one text$"):
        prepare(tmp_path / "out", str(tmp_path / "t.json"), [])
