"""Merging, types and errors of stepstack.config, on config classes and files made here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

import pytest
from pydantic import Field

from recipes.protocol import load_config
from stepstack import config
from stepstack.config import CONFIGS, ConfigError, RunConfig, Strict, Tracker


@dataclass(frozen=True, kw_only=True, slots=True)
class Adam(Strict):
    type: Literal["adam"] = "adam"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)


@dataclass(frozen=True, kw_only=True, slots=True)
class Muon(Strict):
    type: Literal["muon"] = "muon"
    lr: float = 0.02
    momentum: float = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy(Strict):
    optim: Annotated[Adam | Muon, Field(discriminator="type")] = Adam()
    clip: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Extra(Strict):
    size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(RunConfig):
    policy: Policy = Policy()
    critic: Policy = Policy(optim=Muon(momentum=0.5), clip=2.0)
    stop: tuple[str, ...] = ()
    targets: str | tuple[str, ...] = "all"
    steps: int = 10
    shuffle: bool = True
    extra: tuple[Extra, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Plain(Strict):
    type: Literal["plain"] = "plain"
    path: str = "here"


@dataclass(frozen=True, kw_only=True, slots=True)
class Critics(Strict):
    type: Literal["critics"] = "critics"
    critic: Policy = Policy(optim=Muon(momentum=0.5), clip=2.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Nested(RunConfig):
    model: Annotated[Plain | Critics, Field(discriminator="type")] = Plain()


def resolve(path, overrides=(), cls=Config):
    return config.resolve(path, overrides, class_of=lambda recipe: cls)


@pytest.fixture
def write(tmp_path):
    """Write a config file and return its path as text."""

    def to(name: str, text: str) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    return to


def built(path: str, *overrides: str) -> Config:
    return config.build(Config, resolve(path, overrides))


def refused(path: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        built(path, *overrides)
    return str(caught.value)


# -- precedence ------------------------------------------------------------------------------------------------------


def test_precedence_is_default_then_bases_then_file_then_command_line(write):
    write("base/root.yaml", "steps: 1\nseed: 1\neval_every: 1\npolicy: {clip: 1.0}")
    write("base/middle.yaml", "base: root.yaml\nseed: 2\neval_every: 2")
    file = write("run.yaml", "base: base/middle.yaml\nrecipe: x\neval_every: 3")
    cfg = built(file, "max_skipped=9", "policy.optim.lr=0.5")
    assert (cfg.steps, cfg.seed, cfg.eval_every, cfg.max_skipped) == (1, 2, 3, 9)
    assert cfg.policy == Policy(clip=1.0, optim=Adam(lr=0.5))
    assert cfg.save.every == 50


def test_a_later_override_wins(write):
    assert built(write("a.yaml", "recipe: x"), "steps=1", "steps=2").steps == 2


def test_explain_names_the_source_of_every_value(write):
    write("base.yaml", "# numbers\nsteps: 1\npolicy: {clip: 1.0}")
    file = write("run.yaml", "base: base.yaml\nrecipe: x\nstop: [a, b]")
    resolved = resolve(file, ["seed=3"])
    rows = {key: (value, source) for key, value, source in config.explain(config.build(Config, resolved), resolved)}
    assert rows["steps"][1].endswith("base.yaml:2")
    assert rows["policy.clip"] == (1.0, rows["steps"][1].replace(":2", ":3"))
    assert rows["stop"][0] == ["a", "b"]
    assert rows["stop"][1].endswith("run.yaml:3")
    assert rows["seed"] == (3, "command line seed=3")
    assert rows["policy.optim.lr"] == (1e-3, "default")
    assert rows["name"][0] == "run"


def test_a_union_whose_type_changes_is_replaced_whole(write):
    write("base.yaml", "policy: {clip: 1.0, optim: {type: adam, lr: 0.5, betas: [0.1, 0.2]}}")
    file = write("run.yaml", "base: base.yaml\nrecipe: x\npolicy: {optim: {type: muon}}")
    assert built(file).policy == Policy(clip=1.0, optim=Muon())
    keys = resolve(file).sources
    assert not any("betas" in key for key in keys)


def test_a_union_whose_type_is_first_named_is_merged_if_it_is_the_default(write):
    """Naming what is there already changes nothing; another choice replaces it whole."""
    file = write("run.yaml", "recipe: x\npolicy: {optim: {lr: 0.5}}\ncritic: {optim: {lr: 0.5}}")
    assert built(file, "policy.optim.type=adam").policy.optim == Adam(lr=0.5)
    assert built(file, "policy.optim.type=muon").policy.optim == Muon()
    assert built(file, "critic.optim.type=muon").critic.optim == Muon(lr=0.5, momentum=0.5)
    assert resolve(file, ["policy.optim.type=adam"]).sources["policy.optim.lr"].endswith("run.yaml:2")


def test_a_union_whose_type_stays_is_merged(write):
    write("base.yaml", "policy: {optim: {type: muon, lr: 0.5}}")
    file = write("run.yaml", "base: base.yaml\nrecipe: x\npolicy: {optim: {type: muon, momentum: 0.1}}")
    assert built(file, "policy.optim.lr=0.25").policy.optim == Muon(lr=0.25, momentum=0.1)


def test_a_chosen_section_has_its_own_defaults(write):
    """A critic's optimizer is Muon by default, and so it is where a file only names the model that has a critic."""
    file = write("run.yaml", "recipe: x\nmodel: {type: critics}")
    chosen = config.build(Nested, resolve(file, cls=Nested, overrides=["model.critic.optim.lr=0.25"]))
    assert chosen.model == Critics(critic=Policy(optim=Muon(lr=0.25, momentum=0.5), clip=2.0))
    other = config.build(
        Nested, resolve(file, cls=Nested, overrides=["model.critic.optim.type=adam", "model.critic.optim.lr=0.25"])
    )
    assert other.model == Critics(critic=Policy(optim=Adam(lr=0.25), clip=2.0))
    with pytest.raises(ConfigError, match=r"model\.critic\.optim\.betas"):
        config.build(Nested, resolve(file, cls=Nested, overrides=["model.critic.optim.betas=[0.1, 0.2]"]))


def test_the_type_of_a_union_changes_on_the_command_line(write):
    file = write("run.yaml", "recipe: x\npolicy: {optim: {type: adam, betas: [0.1, 0.2]}}")
    assert built(file, "policy.optim.type=muon").policy.optim == Muon()


def test_the_defaults_of_a_field_merge_key_by_key(write):
    cfg = built(write("run.yaml", "recipe: x\ncritic: {optim: {lr: 0.5}}"))
    assert cfg.critic == Policy(optim=Muon(lr=0.5, momentum=0.5), clip=2.0)
    assert built(write("run.yaml", "recipe: x\ncritic: {optim: {type: adam}}")).critic == Policy(clip=2.0)


# -- scalars ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["1e-6", "1.0e-6", "1E-6", ".000001", "+1e-6"])
def test_floats_in_every_spelling(write, text):
    file = write("a.yaml", f"recipe: x\npolicy: {{clip: {text}}}")
    assert built(file).policy.clip == 1e-6
    assert built(file, f"policy.clip={text}").policy.clip == 1e-6


def test_null_and_whole_numbers_for_floats(write):
    file = write("a.yaml", "recipe: x\npolicy: {clip: 1}")
    assert built(file).policy.clip == 1.0
    assert built(file, "policy.clip=null").policy.clip is None


def test_words_of_yaml_1_1_are_strings(write):
    file = write("a.yaml", "recipe: x\nprecision: no\nname: 2026-11-23\nstop: [on, yes, 1:30, '']")
    cfg = built(file)
    assert (cfg.precision, cfg.name, cfg.stop) == ("no", "2026-11-23", ("on", "yes", "1:30", ""))
    assert built(file, "precision=no").precision == "no"


def test_whole_numbers_may_begin_with_zeros(write):
    file = write("a.yaml", "recipe: x\nsteps: 010\nseed: 08")
    assert (built(file).steps, built(file).seed, built(file, "steps=0x1F").steps) == (10, 8, 31)


def test_lists_and_empty_strings_on_the_command_line(write):
    file = write("a.yaml", "recipe: x\nname: y")
    assert built(file, "stop=[a, '</b>']", "targets=[q, k]").targets == ("q", "k")
    assert built(file, "targets=").targets == ""


# -- errors ----------------------------------------------------------------------------------------------------------


def test_unknown_key_names_line_and_neighbour(write):
    message = refused(write("bad.yaml", "recipe: x\n\nstepz: 3"))
    assert message.endswith("bad.yaml:3: unknown key 'stepz'; did you mean 'steps'?")


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("seed: 1\nstepz: 3", 2, "unknown key 'stepz'"),
        ("seed: 1\nplicy:\n  clip: 3", 2, "unknown key 'plicy'"),
        ("policy:\n  optim:\n    lr: 1.0\n    rl: 2.0", 4, "unknown key 'policy.optim.rl'"),
        (
            "policy:\n  optim:\n    type: muon\n    lr: fast",
            4,
            "policy.optim.lr = 'fast': Input should be a valid number",
        ),
        ("stop:\n  - a\n  - 1", 3, "stop.1 = 1: "),
        ("seed: 1\nsave: {\n  keep: 0}", 3, "save.keep = 0: "),
    ],
)
def test_an_error_names_the_line_of_the_base_that_set_it(write, text, line, words):
    write("parent.yaml", text)
    message = refused(write("a.yaml", "base: parent.yaml\nrecipe: x\npolicy: {clip: 1.0}\nsave: {every: 3}"))
    assert f"parent.yaml:{line}: {words}" in message
    assert len(message.splitlines()) == 1


def test_an_error_names_the_line_that_set_it_last(write):
    write("parent.yaml", "policy:\n  clip: 1.0\nstop: [1, 2]")
    file = write("a.yaml", "base: parent.yaml\nrecipe: x\npolicy:\n  clip: wide\nstop: [b]")
    assert "a.yaml:4: policy.clip = 'wide'" in refused(file)
    assert refused(file, "policy.clip=high").startswith("command line policy.clip=high: policy.clip")
    assert built(file, "policy={clip: 2.0}").stop == ("b",)


@pytest.mark.parametrize(
    ("override", "suggested"),
    [
        ("policy.betas=1", "'policy.optim.betas'"),  # further down, by its whole path
        ("policy.clipp=1", "'policy.clip'"),
        ("save.evry=1", "'save.every'"),
    ],
)
def test_a_key_that_lives_further_down_is_suggested_by_its_whole_path(write, override, suggested):
    assert f"did you mean {suggested}?" in refused(write("a.yaml", "recipe: x"), override)


def test_a_key_of_another_choice_says_which_key_chooses():
    message = "unknown key 'model.path': another model.type has it; set model.type too"
    with pytest.raises(ConfigError, match=message):
        load_config("orz-tiny", ["model.path=x"])
    with pytest.raises(ConfigError, match=r"did you mean 'data\.options\.space'\?"):
        load_config("perception-grounding-2b", ["data.space=pixels"])


def test_a_missing_key_is_looked_for_where_its_map_stands(write):
    message = refused(write("a.yaml", "recipe: x\nextra:\n  - {size: 1}\n  - {}"))
    assert message.endswith("a.yaml:4: key 'extra.1.size' is missing")


def test_unknown_key_in_a_union_is_written_as_in_the_file(write):
    message = refused(write("a.yaml", "recipe: x\npolicy: {optim: {type: muon, momentun: 1}}"))
    assert "unknown key 'policy.optim.momentun'; did you mean 'policy.optim.momentum'?" in message


def test_a_key_at_the_wrong_place_is_told_the_right_one(write):
    message = refused(write("a.yaml", "recipe: x"), "momentum=1")
    assert message.startswith("command line momentum=1: unknown key 'momentum'; did you mean")
    assert message.endswith("'critic.optim.momentum' or 'policy.optim.momentum'?")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("steps=many", "steps = 'many': Input should be a valid integer"),
        ("steps=true", "steps = True: Input should be a valid integer"),
        ("steps='3'", "steps = '3': Input should be a valid integer"),
        ("steps=1.5", "steps = 1.5: Input should be a valid integer"),
        ("policy.clip=x", "policy.clip = 'x': Input should be a valid number"),
        ("policy=3", "policy = 3: "),
        ("shuffle=1", "shuffle = 1: Input should be a valid boolean"),
        ("name=3", "valid string (in quotes it is one: '\"3\"')"),
        ("precision=int4", "precision = 'int4': Input should be 'no' or 'bf16'"),
        ("launch.nodes=0", "launch.nodes = 0: Input should be greater than 0"),
        ("save.every=-1", "save.every = -1: Input should be greater than or equal to 0"),
        ("policy.optim.type=sgd", "policy.optim"),
        ("stop=[1]", "stop.0 = 1: Input should be a valid string"),
    ],
)
def test_mistyped_value_names_key_value_and_source(write, override, words):
    message = refused(write("a.yaml", "recipe: x"), override)
    assert message.startswith(f"command line {override}: ")
    assert words in message
    assert len(message.splitlines()) == 1


def test_every_error_is_reported_at_once(write):
    message = refused(write("a.yaml", "recipe: x\nsteps: a\nseed: b\nfoo: c"))
    assert len(message.splitlines()) == 3


def test_bad_choice_of_a_union_lists_the_choices(write):
    message = refused(write("a.yaml", "recipe: x\npolicy: {optim: {type: sgd}}"))
    assert "'adam'" in message
    assert "'muon'" in message


@pytest.mark.parametrize("text", ["steps", "=3", ".steps=3", "policy..clip=3", "steps.=3"])
def test_malformed_override(write, text):
    assert "a.b.c=value" in refused(write("a.yaml", "recipe: x"), text)


def test_override_that_is_not_yaml(write):
    assert "not a YAML value" in refused(write("a.yaml", "recipe: x"), "stop=[a")


def test_base_chain_that_loops_is_named(write):
    write("b.yaml", "base: ../" + Path(write("a.yaml", "base: b.yaml\nrecipe: x")).parent.name + "/a.yaml")
    file = str(Path(write("c.yaml", "base: a.yaml")).with_name("a.yaml"))
    assert "loops at" in refused(file)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("recipe: x\nbase: nowhere.yaml", ":2: base = 'nowhere.yaml': /"),
        ("base: [a, b]\nrecipe: x", ":1: base = ['a', 'b']: must be the path of one file"),
        ("- a\n- b", ": must be a map of keys, not list"),
        ("''", ": must be a map of keys, not str"),
        ("recipe: x\nseed: 1\nseed: 2", ":3: not YAML: key 'seed' stands twice"),
        ("recipe: x\nsave: {keep: 1,\n  keep: 2}", ":3: not YAML: key 'keep' stands twice"),
        ("recipe: [unclosed\nseed: 1", ":2: not YAML: expected ',' or ']'"),
        ("recipe: x\nname: {{size}}", ":2: not YAML: found unhashable key"),
        ("recipe: x\nname: \x07", ": not YAML: "),
        ("seed: 1", ": no key 'recipe'"),
        ("", ": no key 'recipe'"),
    ],
)
def test_broken_file_is_named(write, text, words):
    assert f"broken.yaml{words}" in refused(write("broken.yaml", text))


def test_unknown_config_lists_the_menu(tmp_path, write):
    write("orz-tiny.yaml", "recipe: orz")
    with pytest.raises(ConfigError, match=r"Did you mean orz-tiny\? There are: orz-tiny"):
        config.find("orz-tny", tmp_path)


@pytest.mark.parametrize("recipe", ["nothing", "3", "[a]", "null"])
def test_unknown_recipe_lists_the_recipes(write, recipe):
    with pytest.raises(ConfigError, match="no recipe"):
        load_config(write("a.yaml", f"recipe: {recipe}"))


# -- names of files and tasks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("evals=[test, tset]", "evals = 'tset': no such task. Did you mean test? There are: train, select, test, "),
        ("evals=[orz_tniy]", "Did you mean orz_tiny?"),
        ("evals=['lm_eval:']", "evals = 'lm_eval:': no such task."),
        ("evals=[gone.py]", "evals = 'gone.py': no such task."),
        ("launch.file=cpu-dpp", "launch.file = 'cpu-dpp': configs/launch/cpu-dpp.yaml does not exist. Did you mean"),
        ("trackers=[tensorbord]", "trackers.0 = 'tensorbord': Input should be 'tensorboard', 'wandb', "),
        ("actor.clip=0", "actor.clip = 0: Input should be greater than 0"),
        ("actor_updates=0", "actor_updates = 0: Input should be greater than 0"),
        ("rollout.sampling.top_p=1.5", "rollout.sampling.top_p = 1.5: Input should be less than or equal to 1"),
    ],
)
def test_what_no_run_could_use_is_refused_when_it_is_loaded(override, words):
    with pytest.raises(ConfigError) as caught:
        load_config("orz-tiny", [override])
    assert str(caught.value).startswith(f"command line {override}: ")
    assert words in str(caught.value)


def test_tasks_by_every_kind_of_name(tmp_path):
    (tmp_path / "mine.py").write_text("")
    names = ["train", "select", "test", "aime24", "lm_eval:gsm8k", str(tmp_path / "mine.py")]
    assert load_config("orz-tiny", [f"evals=[{', '.join(names)}]"]).evals == tuple(names)


def test_a_wrong_task_names_the_file_that_has_it(write):
    with pytest.raises(ConfigError, match=r"a\.yaml:2: evals = 'tset'"):
        load_config(write("a.yaml", f"base: {CONFIGS}/orz-tiny.yaml\nevals: [tset]"))


def test_a_base_is_a_path_or_the_name_of_a_config(write):
    named = load_config(write("a.yaml", "base: orz-tiny\nsteps: 3"))
    assert (named.steps, named.recipe) == (3, "orz")
    assert named == load_config(write("a.yaml", f"base: {CONFIGS}/orz-tiny.yaml\nsteps: 3"))
    with pytest.raises(ConfigError, match=r"a\.yaml:1: base = 'orz-tin': configs/orz-tin\.yaml does not exist"):
        load_config(write("a.yaml", "base: orz-tin"))


def test_runs_of_a_config_outside_of_the_repository_are_in_the_current_folder(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = write("a.yaml", "base: orz-tiny")
    assert load_config(file).folder == tmp_path / "runs" / "a"
    assert load_config(file, ["dir=mine"]).folder == tmp_path / "mine" / "a"
    assert load_config(file, ["dir=/elsewhere"]).folder == Path("/elsewhere/a")
    assert load_config("orz-tiny").folder == config.ROOT / "runs" / "orz-tiny"
    assert resolve(file).sources["dir"] == "the current folder"
    with pytest.raises(ConfigError, match="dir = 3"):
        load_config(file, ["dir=3"])


def test_trackers_are_those_of_accelerate():
    from accelerate.utils import LoggerType

    assert set(get_args(Tracker)) == {str(kind.value) for kind in LoggerType} - {"all"}


# -- records ---------------------------------------------------------------------------------------------------------


def test_to_dict_is_plain_and_builds_the_same_again(write):
    cfg = built(write("a.yaml", "recipe: x\nstop: [a]\npolicy: {optim: {type: muon}}"))
    plain = config.to_dict(cfg)
    assert plain["stop"] == ["a"]
    again = config.build(Config, config.Resolved(Path("x"), plain, {}))
    assert again == cfg


def test_digest_depends_on_values_and_not_on_ignored_keys(write):
    file = write("a.yaml", "recipe: x")
    assert config.digest(built(file)) == config.digest(built(file, "steps=10"))
    assert config.digest(built(file)) != config.digest(built(file, "steps=11"))
    assert config.digest(built(file, "name=y"), ["name"]) == config.digest(built(file), ["name"])
    assert len(config.digest(built(file))) == 16


def test_difference_names_dotted_keys(write):
    file = write("a.yaml", "recipe: x")
    old, new = (config.to_dict(built(file, *o)) for o in ([], ["seed=7", "policy.optim.type=muon"]))
    assert config.difference(old, old) == []
    changed = config.difference(old, new)
    assert "seed: 42 -> 7" in changed
    assert "policy.optim.type: adam -> muon" in changed
    assert "policy.optim.momentum: (absent) -> 0.95" in changed
