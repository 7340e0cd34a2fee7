"""manifest.json of a prepared folder, whatever became of it: read whole, or refused with its name."""

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.prepare.manifest import MANIFEST, Manifest, read_manifest, split_rows, write_files

ROWS = b'{"a": 1}\n{"a": 2}\n'
EMPTY = Manifest(schema=1, stepstack="1", data="test", sources=[], evals={}, options={}, counts={}, files={})


@pytest.fixture
def file(tmp_path, monkeypatch):
    from data.prepare import manifest

    monkeypatch.setattr(manifest, "SCHEMA", 1)
    write_files(tmp_path, {"train.jsonl": ("train", ROWS)}, EMPTY)
    assert list(split_rows(tmp_path / MANIFEST, read_manifest(tmp_path / MANIFEST), "train")) == [{"a": 1}, {"a": 2}]
    return tmp_path / MANIFEST


def read(file):
    return list(split_rows(file, read_manifest(file, "test"), "train"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"files": {"../secret.jsonl": {"split": "train"}}},
            r"names \.\./secret\.jsonl, which leads out",
        ),
        ({"files": {"/etc/passwd": {"split": "train"}}}, "leads out of its folder"),
        ({"files": []}, "files must be a map"),
        ({"files": {"train.jsonl": 1}}, "files must be a map of maps"),
        ({"files": {"train.jsonl": {}}}, "no split 'train'"),
        ({"files": {"train.jsonl": {"split": "train"}}}, "sha256 is"),
        ({"files": {"gone.jsonl": {"split": "train"}}}, r"gone\.jsonl does not exist, though"),
        ({"more": 1}, "missing or unknown keys more"),
        ({"counts": ...}, "missing or unknown keys counts"),
        ({"schema": 7}, "schema 7"),
        ({"data": "other"}, "holds data of other"),
    ],
)
def test_a_changed_key_is_named(file, change, words):
    content = {k: v for k, v in (json.loads(file.read_text()) | change).items() if v is not ...}
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=words):
        read(file)


@settings(deadline=None)
@given(st.data())
def test_a_lost_or_changed_byte_is_a_data_error_or_harmless(tmp_path_factory, data):
    from data.prepare import manifest

    folder = tmp_path_factory.mktemp("data")
    write_files(folder, {"train.jsonl": ("train", ROWS)}, EMPTY)
    victim = folder / data.draw(st.sampled_from([MANIFEST, "train.jsonl"]))
    content = victim.read_bytes()
    at = data.draw(st.integers(0, len(content) - 1))
    other = bytes([content[at] ^ data.draw(st.sampled_from([1, 32, 128]))])
    victim.write_bytes(data.draw(st.sampled_from([content[:at], content[:at] + other + content[at + 1 :]])))
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(DataError):
        patch.setattr(manifest, "SCHEMA", 1)
        assert read(folder / MANIFEST) == [{"a": 1}, {"a": 2}]
