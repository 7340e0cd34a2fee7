"""Records on disk: torn lines, bad lines, atomic files."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepstack.report import jsonl


def test_rows_come_back_in_order(tmp_path):
    path = tmp_path / "deep" / "m.jsonl"
    rows = [{"step": i, "é": [1.5, None, "x\ny"]} for i in range(3)]
    for row in rows:
        jsonl.append(path, row)
    read = jsonl.read(path)
    assert read == rows
    assert read.torn == 0
    assert len(path.read_text().splitlines()) == 3


@pytest.mark.parametrize("tail", [b'{"step": 9', b'{"step": 9}', b"\xff\xc3", b"x" * 10000])
def test_a_torn_last_line_is_dropped_counted_and_cut_by_the_next_append(tmp_path, tail):
    path = tmp_path / "m.jsonl"
    jsonl.append(path, {"step": 1})
    with path.open("ab") as handle:
        handle.write(tail)
    read = jsonl.read(path)
    assert (read, read.torn) == ([{"step": 1}], 1)
    jsonl.append(path, {"step": 2})
    read = jsonl.read(path)
    assert (read, read.torn) == ([{"step": 1}, {"step": 2}], 0)


def test_a_file_that_is_only_a_torn_line(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"a')
    assert (jsonl.read(path), jsonl.read(path).torn) == ([], 1)
    jsonl.append(path, {"a": 1})
    assert jsonl.read(path) == [{"a": 1}]


@pytest.mark.parametrize("bad", ['{"step": 1', "[1]", ""])
def test_a_bad_line_in_the_middle_is_an_error_with_its_number(tmp_path, bad):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 0}\n' + bad + '\n{"step": 2}\n')
    with pytest.raises(jsonl.JsonError, match=r"m\.jsonl:2: "):
        jsonl.read(path)


def test_what_is_no_json_is_refused_and_nothing_is_written(tmp_path):
    path = tmp_path / "m.jsonl"
    jsonl.append(path, {"a": 1})
    with pytest.raises(TypeError):
        jsonl.append(path, {"a": object()})
    assert jsonl.read(path) == [{"a": 1}]


def test_kill_9_while_appending_loses_at_most_the_last_line(tmp_path):
    path = tmp_path / "m.jsonl"
    code = (
        "import pathlib, sys; from stepstack.report import jsonl\n"
        "for i in range(10**9): jsonl.append(pathlib.Path(sys.argv[1]), {'step': i, 'text': 'x' * 3000})"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)])
    while not path.exists() or path.stat().st_size < 200_000:
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    steps = [row["step"] for row in jsonl.read(path)]
    assert steps == list(range(len(steps)))
    assert len(steps) > 60


def test_atomic_write_replaces_whole_files_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "deep" / "r.json"
    jsonl.write_json_atomic(path, {"a": 1})
    jsonl.write_json_atomic(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 2}
    assert os.listdir(path.parent) == ["r.json"]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("name", ["r.json", "a[1].json"])
def test_what_a_killed_write_left_is_removed_by_a_later_one(tmp_path, name):
    """Only an old one is removed: another process may be at the same work."""
    code = (
        "import os, signal, sys; from pathlib import Path; from stepstack.report import jsonl; "
        "Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL); "
        "jsonl.write_json_atomic(Path(sys.argv[1]), {'a': 1})"
    )
    path = tmp_path / name
    assert subprocess.run([sys.executable, "-c", code, path], check=False).returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    (tmp_path / f".{name}.notes").write_text("a user's own")
    jsonl.write_json_atomic(path, {"a": 2})
    assert left.exists()
    os.utime(left, (0, left.stat().st_mtime - jsonl.ABANDONED_SECONDS - 1))
    jsonl.write_json_atomic(path, {"a": 3})
    assert {file.name for file in tmp_path.iterdir()} == {name, f".{name}.notes"}
    assert json.loads(path.read_text()) == {"a": 3}


def test_a_failed_atomic_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "r.txt"
    jsonl.write_text_atomic(path, "old")
    with pytest.raises(UnicodeEncodeError):
        jsonl.write_text_atomic(path, "new \ud800")
    with pytest.raises(TypeError):
        jsonl.write_json_atomic(path, {"a": object()})
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["r.txt"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"is not JSON \(Expecting value"),
        (b'{"a": 1, "b"', "is not JSON"),
        (b'{"a": "\xff"}', "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1]", "must hold an object, not list"),
        (b"null", "must hold an object, not NoneType"),
        (b'{"a": 1}', "has no 'b', 'c'"),
    ],
)
def test_a_file_that_is_no_object_with_its_keys_is_named(tmp_path, content, words):
    file = tmp_path / "facts.json"
    file.write_bytes(content)
    with pytest.raises(jsonl.JsonError, match=rf"facts\.json {words}.*: restore the file"):
        jsonl.read_json(file, "a", "b", "c")


@settings(deadline=None)
@given(st.data())
def test_no_byte_that_is_lost_or_changed_ends_in_another_error(tmp_path_factory, data):
    file = tmp_path_factory.mktemp("json") / "facts.json"
    jsonl.write_json_atomic(file, {"a": {"x": [1, 2.5, None]}, "b": "text", "c": True})
    content = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content = data.draw(st.sampled_from([content[:place], content[:place] + b"\xff" + content[place + 1 :]]))
    file.write_bytes(content)
    with contextlib.suppress(jsonl.JsonError):
        assert jsonl.read_json(file, "a", "b", "c").keys() >= {"a", "b", "c"}


def test_a_file_that_was_written_at_once_has_no_torn_line(tmp_path):
    file = tmp_path / "rows.jsonl"
    jsonl.write_rows_atomic(file, [{"a": 1}, {"a": 2}])
    assert jsonl.read_whole(file) == [{"a": 1}, {"a": 2}]
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(jsonl.JsonError, match=r"rows\.jsonl:2: the file ends in the middle of a line"):
        jsonl.read_whole(file)
