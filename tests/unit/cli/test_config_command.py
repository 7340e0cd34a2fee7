"""What `stepstack config` prints: values, the manual of keys, schemas; for a pipe and for a terminal."""

from __future__ import annotations

import json
import re

import pytest

from stepstack.cli import config as command
from stepstack.cli.main import main

HEAD = ["key", "value", "origin", "type or choices", "meaning"]


@pytest.fixture
def said(capsys):
    """What a command prints; it must succeed."""

    def run(*words: str) -> str:
        assert main(["config", *words]) == 0
        return capsys.readouterr().out

    return run


@pytest.fixture
def refused(capsys):
    """The error of a command that must fail with one line."""

    def run(*words: str) -> str:
        assert main(["config", *words]) == 2
        message = capsys.readouterr().err
        assert len(message.splitlines()) == 1
        return message

    return run


@pytest.fixture
def terminal(monkeypatch, capsys):
    """What the table looks like on a terminal of ``columns``."""

    def run(columns: int, *words: str) -> list[str]:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
        assert main(["config", *words]) == 0
        return re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()

    return run


def row(text: str, key: str) -> list[str]:
    """The cells of a key's line in a table for a pipe."""
    [line] = [line for line in text.splitlines() if line.split(" ")[0] == key]
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_without_a_flag_it_prints_key_and_value(said):
    lines = said("orz-tiny", "seed=7").splitlines()
    assert "seed = 7" in lines
    assert "rollout.sampling.top_k = -1" in lines
    assert all(" = " in line for line in lines)


def test_without_a_name_it_prints_the_menu_without_lines_for_editors(said, tmp_path, monkeypatch):
    (tmp_path / "a-tiny.yaml").write_text(
        "# yaml-language-server: $schema=schema.json\n# A tiny one.\nrecipe: orz\n", encoding="utf-8"
    )
    monkeypatch.setattr(command, "CONFIGS", tmp_path)
    assert said().split() == ["a-tiny", "A", "tiny", "one."]


def test_the_menu_has_one_column_of_names_in_order_and_fits_a_terminal(said, tmp_path, monkeypatch):
    names = ("a-large-anneal", "a-large", "a-name-of-more-than-twenty-letters")
    for name in names:
        (tmp_path / f"{name}.yaml").write_text(f"# What {name} is, in words that do not fit.\n", encoding="utf-8")
    monkeypatch.setattr(command, "CONFIGS", tmp_path)
    lines = said().splitlines()
    assert [line.split()[0] for line in lines] == sorted(names)
    assert len({line.index("What") for line in lines}) == 1
    monkeypatch.setattr(command.sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    assert max(map(len, said().splitlines())) <= 60


def test_a_piped_table_has_a_whole_line_for_each_key(said):
    text = said("orz-tiny", "--explain", "seed=7")
    assert [cell.strip() for cell in text.splitlines()[0].split("  ") if cell.strip()] == HEAD
    assert row(text, "seed") == [
        "seed",
        "7",
        "command line seed=7",
        "int >= 0",
        "Seed of everything that training draws.",
    ]
    assert row(text, "rollout.sampling.top_k")[1:4] == ["-1", "default", "int >= -1"]
    assert row(text, "advantage.type")[3] == "gae | grpo | rloo | reinforce_plus_plus | remax"
    assert row(text, "actor.lora")[1:4] == ["null", "default", "map | null"]
    steps = row(text, "steps")
    assert steps[2] == "configs/orz-tiny.yaml:3"
    assert steps[4] == "Training steps: each samples rollouts, scores them and updates the models."


def test_the_piped_table_shows_the_keys_of_the_plain_list_in_the_same_order(said):
    plain = [line.partition(" = ")[0] for line in said("stepvideo-tiny").splitlines()]
    table = [line.split(" ")[0] for line in said("stepvideo-tiny", "--explain").splitlines()[1:]]
    assert table == plain


def test_derived_values_are_in_the_table(said):
    text = said("orz-tiny", "actor.optim={type: steplaw}", "--explain")
    [line] = [line for line in text.splitlines() if line.startswith("actor.optim.batch_tokens ")]
    assert "  derived  " in line


@pytest.mark.parametrize("name", ["orz-32b", "perception-tiny", "steplaw-tiny", "stepvideo-tiny-dsv"])
def test_a_terminals_table_stays_within_120_columns_and_keeps_its_columns(terminal, name):
    lines = terminal(120, name, "--explain")
    assert max(map(len, lines)) <= 120
    assert max(map(len, lines)) > 90
    head = next(line for line in lines if line.startswith("key"))
    starts = [head.index(title) for title in HEAD]
    for line in lines[1:]:
        if line.rstrip().count("  ") > 1:  # no heading of a section
            assert all(line[start - 1] == " " for start in starts[1:] if start <= len(line.rstrip()))


def test_a_terminals_table_names_sections_and_shortens_origins_and_long_values(terminal):
    lines = terminal(120, "steplaw-tiny", "--explain", "seed=3")
    assert "data" in [line.rstrip() for line in lines]
    assert any(line.startswith("seed ") and " flag " in line for line in lines)
    assert any("…" in line for line in lines)  # the cells
    assert not any("configs/steplaw-tiny.yaml" in line for line in lines)


def test_a_narrow_terminal_keeps_a_column_for_the_meaning(terminal):
    assert max(map(len, terminal(40, "orz-tiny", "--explain"))) > 90


def test_one_key_is_printed_whole(said):
    text = said("orz-tiny", "--explain", "policy_loss.dual_clip")
    assert text.splitlines() == [
        "policy_loss.dual_clip",
        "  value    null",
        "  origin   default",
        "  type     float in (1, 1e+06] | null",
        "  default  null",
        "  meaning  Bound c of dual-clip PPO, by which the loss of a negative advantage A is at most -c A; "
        "null: no bound.",
    ]


def test_a_union_is_printed_with_all_its_members(said):
    text = said("orz-tiny", "--explain", "advantage")
    blocks = text.split("\n\n")
    assert "map of type gae | grpo | rloo" in blocks[0]
    assert [block.split("  ")[0] for block in blocks[1:]] == [
        "type: gae (taken)",
        *("type: grpo", "type: rloo", "type: reinforce_plus_plus", "type: remax"),
    ]
    assert "  scale" in blocks[2]
    assert "Dr. GRPO" in blocks[2]


def test_a_section_is_printed_with_its_keys(said):
    text = said("orz-tiny", "--explain", "save")
    assert re.search(r"^ *every +20 ", text, re.M)
    assert "configs/orz-tiny.yaml" not in text.split("keys")[0]
    assert "Number of checkpoints that stay, the newest ones." in text


def test_a_section_that_is_off_shows_what_it_would_have(said):
    text = said("stepvideo-tiny", "--explain", "dsv")
    assert "  value    null" in text
    assert "Share of the softmax that critical keys hold together." in text


def test_a_key_of_a_choice_that_is_not_taken_names_the_choice(said):
    assert "this key is one of advantage.type=grpo" in said("orz-tiny", "--explain", "advantage.scale")


def test_keys_of_a_list_of_sections(said):
    text = said("steplaw-tiny", "--explain", "cells.hidden")
    assert "  value    [" in text
    assert "  default  (required)" in text


def test_an_unknown_key_names_the_nearest(refused):
    assert "unknown key 'policy_loss.dual_clop'; did you mean 'policy_loss.dual_clip'?" in refused(
        "orz-tiny", "--explain", "policy_loss.dual_clop"
    )
    assert "'rollout.sampling.temperature'" in refused("orz-tiny", "--explain", "temperature")
    assert "unknown key 'seed.x'" in refused("orz-tiny", "--explain", "seed.x")


def test_the_flag_before_the_name_is_refused_with_the_right_order(refused):
    assert "stepstack config orz-tiny --explain" in refused("--explain", "orz-tiny")


def test_schema_goes_to_stdout_or_to_a_file(said, tmp_path):
    whole = json.loads(said("--schema"))
    assert "recipe" in json.dumps(whole)
    file = tmp_path / "schema.json"
    assert said("--schema", "orz", "--out", str(file)) == ""
    one = json.loads(file.read_text(encoding="utf-8"))
    assert one["properties"]["recipe"]["const"] == "orz"
    assert len(json.dumps(one)) < len(json.dumps(whole))


def test_wrong_words_for_a_schema_are_refused(refused, tmp_path):
    assert "no recipe 'orzz'" in refused("--schema", "orzz")
    assert "--schema" in refused("orz-tiny", "--out", str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()
