"""ORZ's four benchmarks: read and counted, fetched from a copy or a URL whose bytes are the published ones."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import pytest

from data.sets import benchmarks
from data.sets.benchmarks import BENCHMARKS, benchmark, fetch, from_pairs, load
from data.sets.orz_math import DataError
from stepstack.config import ROOT

SHARED = Path(os.environ.get("STEPSTACK_SHARED", ROOT.parent / "shared")) / "data" / "orz"
NAMES = ("aime24", "aime25", "math500", "gpqa_diamond")
published = pytest.mark.skipif(
    not SHARED.is_dir(), reason=f"needs {SHARED} (set STEPSTACK_SHARED): ORZ's eval data is not copied"
)


def rows(count: int) -> list[dict]:
    return [{"prompt": [{"from": "user", "value": f"Problem {i}"}], "final_answer": str(i)} for i in range(count)]


def letters(count: int) -> list[dict]:
    return [{**row, "final_answer": "B", "choices": {"A": "x", "B": "y"}} for row in rows(count)]


def pairs(count: int) -> bytes:
    """As math-ai/aime25 has them; an answer that is a number is one that JSON readers guessed."""
    entries = [
        {"problem": f"Wie viel ist ½·{i}?", "answer": str(i) if i % 2 else i, "id": str(i)} for i in range(count)
    ]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in entries).encode()


def write(path: Path, value) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def served(monkeypatch, name: str, path: Path, content: bytes, sha256: str | None = None) -> None:
    """The benchmark's URL becomes a file's."""
    path.write_bytes(content)
    digest = sha256 or hashlib.sha256(content).hexdigest()
    changed = dataclasses.replace(benchmark(name), url=path.as_uri(), sha256=digest)
    monkeypatch.setattr(benchmarks, "BENCHMARKS", [changed if b.name == name else b for b in BENCHMARKS])


def test_the_four():
    assert {b.name: (b.file, b.rows) for b in BENCHMARKS} == {
        "aime24": ("aime2024.json", 30),
        "aime25": ("aime2025.json", 30),
        "math500": ("math500.json", 500),
        "gpqa_diamond": ("gpqa_diamond.json", 198),
    }
    assert all(b.url.startswith("https://") and len(b.sha256) == 64 for b in BENCHMARKS)
    with pytest.raises(DataError, match=r"no benchmark 'aime': there are aime24, aime25, math500, gpqa_diamond"):
        load("aime", Path())


def test_a_missing_file_says_how_to_get_it(tmp_path):
    for name in NAMES:
        with pytest.raises(DataError) as caught:
            load(name, tmp_path)
        assert str(caught.value).startswith(f"{tmp_path / benchmark(name).file} does not exist: run")
        assert f"`stepstack tasks --fetch {name}`" in str(caught.value)
        assert "--from PATH" in str(caught.value)
        assert benchmark(name).url in str(caught.value)


def test_another_number_of_rows_is_refused(tmp_path):
    write(tmp_path / "aime2024.json", rows(29))
    with pytest.raises(DataError, match=r"aime2024.json has 29 rows, aime24 has 30: fetch it again"):
        load("aime24", tmp_path)
    source = write(tmp_path / "from" / "math500.json", rows(501))
    with pytest.raises(DataError, match=r"math500.json has 501 rows, math500 has 500"):
        fetch(["math500"], tmp_path / "out", str(source))
    assert not (tmp_path / "out").exists()


def test_fetch_from_a_folder_and_from_a_file(tmp_path):
    source, out = tmp_path / "from", tmp_path / "out"
    write(source / "aime2024.json", rows(30))
    write(source / "gpqa_diamond.json", letters(198))
    assert fetch(["aime24", "gpqa_diamond"], out, str(source)) == [out / "aime2024.json", out / "gpqa_diamond.json"]
    assert (out / "aime2024.json").read_bytes() == (source / "aime2024.json").read_bytes()
    assert [p.index for p in load("gpqa_diamond", out)] == list(range(198))
    assert load("gpqa_diamond", out)[7].meta == {"choices": {"A": "x", "B": "y"}}
    other = write(tmp_path / "renamed.json", [*rows(29), {"prompt": [], "final_answer": "1"}])
    with pytest.raises(DataError, match=r"renamed.json row 30: key prompt must be a list of one turn"):
        fetch(["aime24"], out, str(other))
    assert load("aime24", out)[29].gold == "29"  # what was there stays
    write(other, list(reversed(rows(30))))
    fetch(["aime24"], out, str(other))
    assert load("aime24", out)[0].gold == "29"
    assert sorted(p.name for p in out.iterdir()) == ["aime2024.json", "gpqa_diamond.json"]


def test_what_cannot_be_fetched_from(tmp_path):
    with pytest.raises(DataError, match=r"nowhere does not exist: --from takes a folder that holds aime2024.json"):
        fetch(["aime24"], tmp_path / "out", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"math500.json does not exist: --from takes"):
        fetch(["math500"], tmp_path / "out", str(tmp_path))
    source = write(tmp_path / "aime2024.json", rows(30))
    with pytest.raises(DataError, match=r"is one file and 2 benchmarks are asked for"):
        fetch(["aime24", "math500"], tmp_path / "out", str(source))
    (tmp_path / "rows.jsonl").write_bytes(pairs(30))
    with pytest.raises(DataError, match=r"rows.jsonl is no .json file"):
        fetch(["aime24"], tmp_path / "out", str(tmp_path / "rows.jsonl"))


def test_pairs_become_orzs_schema(tmp_path):
    (tmp_path / "test.jsonl").write_bytes(pairs(30))
    [path] = fetch(["aime25"], tmp_path / "out", str(tmp_path / "test.jsonl"))
    result = load("aime25", tmp_path / "out")
    assert [(p.index, p.text, p.gold) for p in result] == [(i, f"Wie viel ist ½·{i}?", str(i)) for i in range(30)]
    assert json.loads(path.read_text())[1] == {
        "prompt": [{"from": "user", "value": "Wie viel ist ½·1?"}],
        "final_answer": "1",
    }
    with pytest.raises(DataError, match=r'x.jsonl line 2: expected {"problem": text, "answer": text}'):
        from_pairs(Path("x.jsonl"), pairs(1) + b'{"question": "q", "answer": 1}\n')
    fetch(["aime25"], tmp_path / "again", str(tmp_path / "out"))  # a folder that was fetched is a source
    assert load("aime25", tmp_path / "again") == result


def test_download(tmp_path, monkeypatch):
    served(monkeypatch, "aime24", tmp_path / "a.json", json.dumps(rows(30)).encode())
    fetch(["aime24"], tmp_path / "out")
    assert (tmp_path / "out" / "aime2024.json").read_bytes() == (tmp_path / "a.json").read_bytes()
    served(monkeypatch, "aime25", tmp_path / "b.jsonl", pairs(30))
    fetch(["aime25"], tmp_path / "out")
    assert load("aime25", tmp_path / "out")[3].gold == "3"


def test_other_bytes_than_the_published_are_refused(tmp_path, monkeypatch):
    content = json.dumps(rows(30)).encode()
    served(monkeypatch, "aime24", tmp_path / "a.json", content, sha256="0" * 64)
    with pytest.raises(DataError) as caught:
        fetch(["aime24"], tmp_path / "out")
    result = hashlib.sha256(content).hexdigest()
    assert f"came with sha256 {result}, expected {'0' * 64}" in str(caught.value)
    assert "nothing written" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_without_network_it_says_what_to_do(tmp_path, monkeypatch):
    """A port that nobody listens at, and a file that is not there."""
    for url in ("http://127.0.0.1:1/aime2024.json", (tmp_path / "gone.json").as_uri()):
        changed = dataclasses.replace(benchmark("aime24"), url=url)
        monkeypatch.setattr(benchmarks, "BENCHMARKS", [changed])
        with pytest.raises(DataError) as caught:
            fetch(["aime24"], tmp_path / "out")
        assert str(caught.value).startswith(f"aime24: {url} cannot be downloaded (")
        assert str(caught.value).endswith("then run `stepstack tasks --fetch aime24 --from PATH`")
    assert not (tmp_path / "out").exists()


@published
def test_published_files(tmp_path):
    fetch(["aime24", "math500"], tmp_path, str(SHARED))
    for name in ("aime24", "math500"):
        content = (tmp_path / benchmark(name).file).read_bytes()
        assert hashlib.sha256(content).hexdigest() == benchmark(name).sha256
    aime = load("aime24", tmp_path)
    assert (len(aime), aime[0].gold, aime[0].meta) == (30, "73", {})
    assert all(p.gold.isdigit() for p in aime)
    assert len({p.text for p in load("math500", tmp_path)}) == 500
