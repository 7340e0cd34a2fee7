"""What the command line shows of errors: one line of what is the user's to mend, and nothing of a reader that left."""

import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import save_file
from torch import zeros

from stepstack.cli import config as command
from stepstack.cli.main import main


def torn(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file({"a": zeros(8)}, file)
    file.write_bytes(file.read_bytes()[:-4])
    with safe_open(file, "pt"):
        pass


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        (lambda tmp_path: (tmp_path / "a" / "b").mkdir(), "No such file or directory"),
        (lambda tmp_path: tmp_path.read_text(), "Is a directory"),
        (lambda tmp_path: Path("/dev/full").write_text("a"), "No space left on device"),
        (torn, "file not fully covered"),
    ],
)
def test_an_error_of_files_is_one_line(tmp_path, monkeypatch, capsys, cause, words):
    monkeypatch.setattr(command, "_print", lambda args: cause(tmp_path))
    assert main(["config", "orz-tiny"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("stepstack config: ")
    assert said.count("\n") == 1
    assert words in said


@pytest.mark.parametrize("words", ["orz-tiny --explain", "orz-tiny --explain steps"])
def test_a_reader_that_leaves_early_gets_no_traceback(words):
    line = f"{sys.executable} -m stepstack config {words} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (141, "")
