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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lanch", "orz-tiny"], "error: no command 'lanch': did you mean launch?"),
        (["--verbose", "confg"], "error: no command 'confg': did you mean config?"),
        (["zzz"], "error: no command 'zzz': `stepstack --help` lists the commands"),
        (["train", "orz-tiny", "--actor.optim.lr", "1e-4"], "without dashes: actor.optim.lr=..."),
        (["train", "orz-tiny", "--actor.optim.lr=1e-4"], "without dashes: actor.optim.lr=..."),
        (["train", "orz-tiny", "--dryrun"], "unrecognized arguments: --dryrun\n"),
    ],
)
def test_a_mistyped_line_says_what_was_meant(words, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert said in capsys.readouterr().err


def test_no_command_shows_the_help(capsys):
    assert main([]) == 2
    assert "stepstack launch orz-tiny" in capsys.readouterr().out


def test_an_unknown_key_that_is_like_no_other_leads_to_the_list(capsys):
    assert main(["config", "orz-tiny", "foo=1"]) == 2
    assert "unknown key 'foo': `config NAME --explain` lists them" in capsys.readouterr().err
