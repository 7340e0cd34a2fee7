"""The JSON schema of config files: every file of configs/ suits it, and what a loader refuses does not."""

from __future__ import annotations

from functools import cache

import jsonschema
import pytest

from recipes import protocol
from stepstack.config import CONFIGS, _read
from stepstack.schema import schema

FILES = [*sorted(CONFIGS.glob("*.yaml")), *sorted((CONFIGS / "base").glob("*.yaml"))]


@cache
def validator(*recipes: str) -> jsonschema.Draft202012Validator:
    whole = schema({name: protocol.config_class(name) for name in recipes or protocol.names()})
    jsonschema.Draft202012Validator.check_schema(whole)
    return jsonschema.Draft202012Validator(whole)


def recipe_of(content: dict, folder) -> str:
    while "recipe" not in content:
        file = folder / content["base"]
        content, folder = _read(file)[0], file.parent
    return content["recipe"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_file_suits_the_schema_of_all_and_of_its_recipe(file):
    content, _ = _read(file)
    own = recipe_of(content, file.parent) if file.parent == CONFIGS else None
    errors = [*validator().iter_errors(content), *(validator(own).iter_errors(content) if own else ())]
    assert [error.message for error in errors] == []


@pytest.mark.parametrize(
    "layer",
    [
        {},
        {"base": "a.yaml"},
        {"recipe": "orz", "advantage": {"type": "grpo", "scale": "none"}},
        {"advantage": {"scale": "none"}},  # the type is the base's
        {"actor": {"optim": {"lr": 1}}},
        {"actor": {"lora": None}},
    ],
)
def test_a_layer_needs_no_key_and_no_type(layer):
    assert validator("orz").is_valid(layer)


@pytest.mark.parametrize(
    "layer",
    [
        {"stepz": 1},
        {"recipe": "perception"},
        {"recipe": "orz", "advantage": {"type": "gae", "scale": "none"}},
        {"advantage": {"type": "ppo"}},
        {"actor": {"clip": 0}},
        {"steps": 1.5},
        {"seed": "1"},
        {"trackers": ["tensorbord"]},
        {"model": {"teach_mix": [0.5, 0.5]}},
        {"base": ["a.yaml", "b.yaml"]},
    ],
)
def test_what_the_loader_refuses_does_not_suit(layer):
    assert not validator("orz").is_valid(layer)


def test_the_recipe_of_a_file_decides_which_keys_it_may_have():
    assert validator().is_valid({"recipe": "steplaw", "cells": []}) is False
    assert validator().is_valid({"recipe": "steplaw", "sequence": 8})
    assert not validator().is_valid({"recipe": "orz", "sequence": 8})


def test_keys_are_described_by_their_docstrings():
    whole = validator("orz").schema
    assert whole["properties"]["steps"]["description"].startswith("Training steps: each samples rollouts")
    assert whole["$defs"]["Pretrained"]["properties"]["path"]["description"].startswith("Hub name or local folder")
    inherited = validator("perception").schema["$defs"]["PretrainedVl"]["properties"]
    assert inherited["path"]["description"].startswith("Hub name or local folder")
    lacking = [
        f"{name}.{key}"
        for name, section in whole["$defs"].items()
        for key, value in section.get("properties", {}).items()
        if "description" not in value
    ]
    assert lacking == []
