"""A finished run on its way to the hub: its card, and every byte of its model, by huggingface_hub's real client."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from recipes.orz.recipe import train
from recipes.protocol import load_config
from stepstack.cli import main as cli
from stepstack.config import ROOT
from stepstack.core.run import Run
from stepstack.harness.training.outcome import results
from tests.cards import check_card
from tests.hub import TOKEN, hub
from tests.system.processes import MINI

CONFIG = (MINI, "name=shared", "steps=2", "actor.lora={r: 2}")  # adapters, so that there are two folders to share


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    run = Run(load_config(CONFIG[0], [*CONFIG[1:], f"dir={folder}"]))
    train(run)
    return run.dir


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A run that no process holds, to do with as a test likes."""
    return Path(shutil.copytree(finished, tmp_path / "runs" / "shared"))


@pytest.fixture
def served(monkeypatch):
    with hub() as local:
        local.serve_this_process(monkeypatch)
        yield local


def words(run: Path, *more: str) -> list[str]:
    return ["push", *CONFIG, f"dir={run.parent}", "--repo", *more]


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_the_cards_of_model_and_adapters(run):
    card = check_card(run)
    assert (card.data.license, card.data.library_name, card.data.datasets) == ("unknown", "transformers", None)
    assert "drawn by the run itself" in card.text
    for when in ("before", "after"):
        metric = results(run / "evals" / when)["test"][1]["metrics"][0]
        assert f"| {metric['value']:.4f} ± {metric['stderr']:.4f} |" in card.text
    assert check_card(run, "model-adapter").data.library_name == "peft"


def test_the_command_uploads_every_byte_to_the_endpoint_of_the_environment(run):
    """In a process of its own, since huggingface_hub reads the environment when it is imported."""
    with hub() as local:
        more = {"HF_ENDPOINT": local.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        line = [sys.executable, "-m", "stepstack", *words(run, "me/sums", "--private", "--revision", "step-2")]
        ended = subprocess.run(line, env=os.environ | more, cwd=ROOT, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        assert f"{local.url}/me/sums/commit/" in ended.stdout
        assert local.private == {"me/sums": True}
        assert local.branches["me/sums", "step-2"] == content(run / "model")
        assert local.branches["me/sums", "main"] == {}
        assert len(local.objects) == 1  # the weights went by LFS, whose sha256 the server compared


def test_adapters_alone_and_a_second_push_over_the_first(run, served):
    for _ in range(2):
        assert cli.main(words(run, "me/adapters", "--adapter")) == 0
    assert served.branches["me/adapters", "main"] == content(run / "model-adapter")
    assert served.private == {"me/adapters": False}


def test_a_dry_run_lists_files_and_sizes_and_calls_nobody(run, served, capsys):
    assert cli.main(words(run, "me/sums", "--dry-run")) == 0
    listed = [line.split() for line in capsys.readouterr().out.splitlines()]
    sizes = {name: int(size.replace(",", "")) for size, name in listed}
    assert sizes == {name: len(text) for name, text in content(run / "model").items()}
    assert served.calls == []


def test_what_is_not_to_be_shared_is_refused_before_anything_is_made(run, served, capsys):
    def refused(*more: str) -> str:
        assert cli.main(words(run, *more)) == 2
        return capsys.readouterr().err

    assert "'sums' names no owner: give owner/name" in refused("sums")
    assert "'a b/c' is no repository of the hub" in refused("a b/c")
    served.private["me/open"], served.branches["me/open", "main"] = False, {}
    assert "me/open is there already and public" in refused("me/open", "--private")
    assert served.branches["me/open", "main"] == {}
    card, record = run / "model" / "README.md", run / "config.json"
    record.write_text(record.read_text().replace('"steps": 2,', '"steps": 3,'))  # as of a run that goes on
    assert "is older than its run, whose config was changed since (steps: 2 -> 3)" in refused("me/sums")
    record.write_text(record.read_text().replace('"steps": 3,', '"steps": 2,'))
    card.write_text(card.read_text().replace("license: unknown", "license: 3"))
    assert "license must be a string" in refused("me/sums")
    card.unlink()
    assert "has no README.md, which is written last" in refused("me/sums")
    shutil.rmtree(run / "model")
    assert "has no model: train it to the end" in refused("me/sums")
    assert "me/sums" not in served.private


def test_a_wrong_token_is_one_line(run, served, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert cli.main(words(run, "me/sums")) == 2
    assert "401" in capsys.readouterr().err
    assert served.branches == {}


def test_a_run_that_a_process_is_training_is_not_shared(finished, served, capsys):
    """This process has trained it and holds its folder."""
    line = [sys.executable, "-m", "stepstack", *words(finished, "me/sums", "--dry-run")]
    ended = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "is in use by process" in ended.stderr
