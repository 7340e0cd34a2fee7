"""Where numbers come from."""

from __future__ import annotations

import json
import subprocess
from datetime import datetime

import pytest

from stepstack.report import provenance as p


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path):
    git(tmp_path, "init")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-m", "a")
    return tmp_path


def test_record_is_plain_json_with_utc_time():
    record = p.provenance()
    assert json.loads(json.dumps(record)) == record
    assert datetime.fromisoformat(record["time"]).utcoffset().total_seconds() == 0
    assert record["host"]["cores"] >= 1
    assert record["host"]["memory_gib"] > 0
    assert record["versions"]["torch"].startswith("2.")


def test_commit_is_clean_then_dirty(repository):
    clean = p.commit(repository)
    assert len(clean["commit"]) == 40
    assert clean["dirty"] is False
    (repository / "untracked").write_text("2")
    assert p.commit(repository) == clean
    (repository / "a").write_text("2")
    assert p.commit(repository) == {**clean, "dirty": True}


def test_no_repository_and_no_commit(tmp_path):
    nothing = {"commit": None, "dirty": None}
    git(tmp_path, "init")
    assert p.commit(tmp_path) == nothing
    assert p.commit(tmp_path / "missing") == nothing


def test_versions_only_of_what_is_installed():
    assert p.versions(["no-such-library", "PyYAML"]).keys() == {"PyYAML"}


def test_describe_is_one_line(repository):
    (repository / "a").write_text("2")
    line = p.describe(p.provenance(repository))
    assert "+changes" in line
    assert "\n" not in line
