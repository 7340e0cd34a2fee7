"""Prompts as vLLM takes them, and its answers as rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from stepstack.generation.types import EngineError, Prompt, Rollout, Sampling, response_budget, rollout_seed


def request(prompt: Prompt, sample: int, sampling: Sampling, max_model_len: int) -> dict[str, Any]:
    """Sampling parameters of one rollout, by the names that vLLM gives them in Python and over HTTP.

    One rollout is one request (n=1), so that the seed is ours; the prefix cache pays for the repeated prompt.
    Everything a model's generation_config could set is set here.
    """
    return {
        "n": 1,
        "seed": rollout_seed(sampling.seed, prompt.problem.index, sample),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "max_tokens": response_budget(prompt, sampling, max_model_len),
        "stop": list(sampling.stop),
        "logprobs": 0,  # of the sampled token only
        "skip_special_tokens": False,
        # True would also put the EOS token into the text; the stop string is put back by to_rollout.
        "include_stop_str_in_output": False,
    }


def to_rollout(
    prompt: Prompt,
    sample: int,
    version: int,
    *,
    ids: Sequence[int],
    logprobs: Sequence[float],
    text: str,
    finish: str | None,
    stop: int | str | None,
) -> Rollout:
    """A Rollout of what vLLM returned; ``stop`` is the matched stop string, an extra EOS id, or None for EOS."""
    where = f"rollout {sample} of prompt {prompt.problem.index}"
    if finish not in ("stop", "length"):
        raise EngineError(f"{where} ended with {finish!r}: the engine aborted it; its log says why")
    if len(ids) != len(logprobs):
        raise EngineError(
            f"{where} has {len(ids)} ids but {len(logprobs)} logprobs: install the vLLM of pyproject.toml"
        )
    text = text + stop if isinstance(stop, str) else text
    kind: Literal["stop", "length"] = "stop" if finish == "stop" else "length"
    return Rollout(
        problem=prompt.problem,
        prompt=prompt,
        sample=sample,
        ids=tuple(ids),
        logprobs=tuple(logprobs),
        text=text,
        finish=kind,
        version=version,
    )
