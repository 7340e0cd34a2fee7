"""Nonsense in configs: refused by name, or harmless. Never a traceback, never accepted in silence."""

import json
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.protocol import load_config, resolve
from stepstack import config
from stepstack.bounds import LARGEST, impossible
from stepstack.config import CONFIGS, ConfigError, flatten, to_dict

NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
NONSENSE = (
    *("-1", "0", "1e9", "1e300", "-0.5", "1.5", ".nan", ".inf", "-.inf", "9" * 30, "9" * 500, "9" * 5000),
    *("''", "null", "true", "nonsense", "../../up", "'..'", '"\\ud800"', "'\u2028'", "[/INST]", "2026-11-23"),
    *(
        "[]",
        "[null]",
        "[-1, 2, 0]",
        "{}",
        "{type: nonsense}",
        "&a [*a]",
        "&a {b: *a}",
        "[" * 2000,
        "!!python/name:os.system",
    ),
)


@cache
def leaves(name):
    """Key -> value of everything that a config holds."""
    return dict(flatten(to_dict(load_config(name))))


def refusal(name, *overrides):
    """What is said where the config is refused, else None. The config that is loaded can be shown and recorded."""
    try:
        cfg = load_config(name, overrides)
    except ConfigError as error:
        str(error).encode()  # a terminal can print it
        return str(error)
    config.explain(cfg, resolve(name, overrides))
    json.dumps(to_dict(cfg), allow_nan=False).encode()
    return None


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_every_override_is_refused_by_name_or_harmless(data):
    name = data.draw(st.sampled_from(NAMES))
    key = data.draw(st.sampled_from(sorted(leaves(name))))
    value = data.draw(st.sampled_from(NONSENSE))
    said = refusal(name, f"{key}={value}")
    if said is not None:
        assert key.partition(".")[0] in said or key.rpartition(".")[2] in said


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_two_overrides_that_contradict_each_other_are_refused_or_harmless(data):
    name = data.draw(st.sampled_from(NAMES))
    keys = st.sampled_from(sorted(leaves(name)))
    refusal(name, *(f"{data.draw(keys)}={data.draw(st.sampled_from(NONSENSE))}" for _ in range(2)))


@pytest.mark.parametrize("name", ["orz-tiny", "perception-tiny", "stepvideo-tiny", "stepaudio-tiny", "mdocsum-tiny"])
@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
def test_no_key_takes_what_is_not_finite(name, value):
    for key in leaves(name):
        assert f"{key}: {float(value.replace('.', ''))} is no finite number" in (refusal(name, f"{key}={value}") or "")


@pytest.mark.parametrize("name", NAMES)
def test_no_number_of_a_config_may_be_enormous(name):
    for key, value in leaves(name).items():
        if type(value) is float:
            assert refusal(name, f"{key}=1e300"), key
        if type(value) is int:
            assert refusal(name, f"{key}={LARGEST + 1}"), key


# Accepted by an earlier version, with what came of it: a model of NaN, a sign turned round, a run of nothing.
SILENT = {
    "orz-tiny": [
        *("actor.clip=-1", "actor.clip=0", "entropy_weight=-1", "entropy_weight=1e30", "kl.weight=-1"),
        *("actor.optim.lr=1e9", "actor.optim.lr=-1", "actor.optim.betas=[2, 3]", "actor.optim.schedule.final=-4"),
        *("actor.optim.schedule.warmup=-4", "policy_loss.clip_low=-0.2", "policy_loss.clip_low=1.5"),
        *("policy_loss.clip_high=1e30", "policy_loss.is_cap=0", "value_loss.clip=-1", "advantage.gamma=5"),
        *("advantage.lam=-1", "steps=0", "steps=-5", "rollout.sampling.stop=['']", "rollout.generator.batch=0"),
        *("rollout.sampling.temperature=1e30", "rollout.sampling.max_tokens=0", "rollout.sampling.max_length=-1"),
        *("actor_updates=0", "critic_updates=-1", "actor.lora={r: 0}", "evals=[nosuchtask]", "evals=['', '']"),
        *("data.select=-1", "data.terms=[7, 5]", "model.hidden=0", "model.hidden=97", "model.layers=-1"),
        *("launch.file=../../etc/passwd", "launch.file=nosuch", "name=../../..", "name=..", "name=a/b", "seed=-1"),
        *("launch.nodes=1000000000000", "save.keep=0"),
    ],
    "perception-tiny": ["kl={weight: 0.1, place: reward}", "advantage.eps=-1", "data.size=-33"],
    "stepvideo-tiny": ["vae.weights.kl=-1", "vae.patch=[3, 7, 7]", "data.size=33"],
    "stepvideo-tiny-dsv": ["sampling.guidance=-1", "dit.optim.lr=1e9", "dsv.switch=0", "dsv.lr=-1", "dsv.lr=1e9"],
    "stepaudio-tiny": ["engine.temperature=-1", "engine.temperature=1e9"],
}


@pytest.mark.parametrize(("name", "override"), [(name, text) for name, texts in SILENT.items() for text in texts])
def test_nonsense_is_refused_by_the_name_of_its_key(name, override):
    said = refusal(name, override)
    assert said is not None
    assert override.partition("=")[0] in said


def test_impossible_names_the_place_in_maps_and_lists():
    value = {"a": [1, {"b": float("nan")}], "c": "\ud800", "d": 2**53, "e": -(2**54), "\udc00": 1}
    assert [name for name, _ in impossible(value, "")] == ["a.1.b", "c", "e", "\\udc00"]
    value["a"].append(value)
    assert ("a.2", "it holds itself (an alias of YAML): write it out") in list(impossible(value, ""))
    shared = [1.0]
    assert not list(impossible({"a": shared, "b": shared}, ""))
