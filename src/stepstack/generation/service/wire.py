"""Messages between trainer and workers: a header in JSON, then arrays as they lie in memory. No torch, no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stepstack.generation.types import Group, Prompt, Rollout, ToolCall

PROTOCOL = 1
MAGIC = b"stepstack"
TYPES = ("int64", "float64", "uint8")


class WireError(ValueError):
    """A message that is not one of this protocol, or is torn."""


@dataclass(frozen=True, slots=True)
class WireMessage:
    """``kind`` says what it is, ``facts`` are plain JSON, ``arrays`` raw numbers by name."""

    kind: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)


def frames(message: WireMessage) -> list[bytes]:
    """A message as the parts of a multipart message."""
    described = [[name, str(array.dtype), list(array.shape)] for name, array in message.arrays.items()]
    header = {"kind": message.kind, "facts": dict(message.facts), "arrays": described}
    content = [np.ascontiguousarray(array).tobytes() for array in message.arrays.values()]
    return [MAGIC + bytes([PROTOCOL]), json.dumps(header).encode(), *content]


def message(parts: Sequence[bytes]) -> WireMessage:
    """The message of received parts. WireError for anything else."""
    if len(parts) < 2 or parts[0][:-1] != MAGIC:
        raise WireError("it is no message of stepstack")
    if parts[0][-1] != PROTOCOL:
        raise WireError(f"it is of protocol {parts[0][-1]}, this is {PROTOCOL}: start both ends of the same version")
    try:
        header = json.loads(parts[1])
        kind, facts, described = header["kind"], header["facts"], header["arrays"]
        arrays = {}
        if len(described) != len(parts) - 2 or not isinstance(facts, dict) or not isinstance(kind, str):
            raise WireError(f"its header describes {len(described)} arrays, {len(parts) - 2} came")
        for (name, dtype, shape), content in zip(described, parts[2:], strict=True):
            if dtype not in TYPES:
                raise WireError(f"its array {name} is of type {dtype}")
            arrays[name] = np.frombuffer(content, dtype).reshape(shape)
    except (ValueError, KeyError, TypeError) as error:
        raise error if isinstance(error, WireError) else WireError(f"it is torn ({error})") from None
    return WireMessage(kind, facts, arrays)


def group_arrays(group: Group) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A group without its prompt, as facts and arrays."""
    rollouts = group.rollouts
    facts = {
        "text": [rollout.text for rollout in rollouts],
        "finish": [rollout.finish for rollout in rollouts],
        "version": [rollout.version for rollout in rollouts],
        "calls": [[[call.begin, call.end, call.succeeded] for call in rollout.calls] for rollout in rollouts],
    }
    return facts, {
        "lengths": np.array([len(rollout.ids) for rollout in rollouts], np.int64),
        "ids": np.array([token for rollout in rollouts for token in rollout.ids], np.int64),
        "logprobs": np.array([value for rollout in rollouts for value in rollout.logprobs], np.float64),
    }


def group_of(prompt: Prompt, facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Group:
    """The group that ``group_arrays`` described, of this prompt. WireError where its parts do not fit."""
    try:
        lengths, ids, logprobs = (arrays[name].tolist() for name in ("lengths", "ids", "logprobs"))
        calls = [tuple(ToolCall(*call) for call in of_rollout) for of_rollout in facts["calls"]]
        per_rollout = list(zip(facts["text"], facts["finish"], facts["version"], calls, lengths, strict=True))
    except (KeyError, TypeError, ValueError) as error:
        raise WireError(f"a group of problem {prompt.problem.index} is torn ({error})") from None
    if sum(lengths) != len(ids) or len(ids) != len(logprobs):
        raise WireError(f"a group of problem {prompt.problem.index} has {len(ids)} tokens for {sum(lengths)}")
    rollouts, start = [], 0
    for sample, (text, finish, version, called, length) in enumerate(per_rollout):
        end = start + length
        rollouts.append(
            Rollout(
                problem=prompt.problem,
                prompt=prompt,
                sample=sample,
                ids=tuple(ids[start:end]),
                logprobs=tuple(logprobs[start:end]),
                text=text,
                finish=finish,
                version=version,
                calls=called,
            )
        )
        start = end
    return Group(prompt, tuple(rollouts))
