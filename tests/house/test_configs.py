"""Every file in configs/ loads, explains itself and can be launched."""

from __future__ import annotations

import re
import shlex

import pytest
import yaml

from recipes.protocol import config_class, load_config, names, resolve
from stepstack import config, keys
from stepstack.config import CONFIGS, ROOT
from stepstack.core import launch

NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def chain(name: str) -> set:
    """The files that a config is made of."""
    file, seen = CONFIGS / f"{name}.yaml", set()
    while file:
        seen.add(file.resolve())
        base = yaml.safe_load(file.read_text()).get("base")
        file = base and file.parent / base
    return seen


def test_there_are_configs():
    assert NAMES


@pytest.mark.parametrize("name", NAMES)
def test_loads_and_explains_every_key(name):
    resolved = resolve(name)
    loaded = load_config(name)
    assert loaded.name == name
    rows = config.explain(loaded, resolved)
    keys = {key for key, _, _ in rows}
    assert keys == {key for key, _ in config.flatten(config.to_dict(loaded))}
    assert {key for key, _ in config.flatten(resolved.values)} <= keys
    for key, _, source in rows:
        if source not in ("default", "derived", f"stem of configs/{name}.yaml"):
            file, _, line = source.partition(":")
            assert key.rpartition(".")[2] in (ROOT / file).read_text().splitlines()[int(line) - 1]


@pytest.mark.parametrize("name", NAMES)
def test_naming_a_choice_that_is_there_already_changes_nothing(name):
    loaded = load_config(name)
    types = [(key, value) for key, value in config.flatten(config.to_dict(loaded)) if key.endswith(".type")]
    assert load_config(name, [f"{key}={value}" for key, value in reversed(types)]) == loaded


@pytest.mark.parametrize("name", NAMES)
def test_dry_run_types_a_line(name, capsys):
    loaded = load_config(name)
    assert launch.run(loaded, name, dry_run=True, environ={}) == 0
    words = shlex.split(capsys.readouterr().out)
    assert words[words.index("-m") :] == ["-m", "stepstack", "train", name, "--end-with-parent"]
    line = launch.command(loaded, name, rank=0, head="node0", environ={})
    assert str(loaded.launch.processes) == line[line.index("--num_processes") + 1]


def classes(cls: type) -> set[type]:
    """A config class and all those of its sections, every member of a union included."""
    below = [section for key in keys.keys_of(cls, "") for section in key.sections]
    return {cls}.union(*(classes(section) for section in below))


SECTIONS = set().union(*(classes(config_class(name)) for name in names()))


@pytest.mark.parametrize("section", sorted(SECTIONS, key=str), ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
def test_every_key_is_explained(section):
    assert issubclass(section, config.Strict)
    assert keys.class_doc(section)
    for key in keys.keys_of(section, ""):
        assert re.match(r"(?!Of |That |As |From |What )[A-Z]", key.doc), f"{key.name}: {key.doc!r}"
        assert key.doc.endswith("."), f"{key.name}: {key.doc!r}"
        assert key.kind


def test_no_base_is_left_alone():
    reached = set().union(*(chain(name) for name in NAMES))
    assert {p.resolve() for p in (CONFIGS / "base").glob("*.yaml")} - reached == set()
