"""A served model as a judge: texts go to it as questions, its words come back."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from stepstack.config import ConfigError
from stepstack.generation.prompts import Message
from stepstack.generation.types import EngineError, Sampling
from stepstack.harness.config import ServedJudge
from stepstack.harness.engine import Engine, Question
from stepstack.harness.engines.server import ServerConfig, ServerEngine
from stepstack.harness.store import model_key
from stepstack.records import Problem


@cache
def open_judge(cfg: ServedJudge) -> ServerEngine:
    """The judge's server, opened once. EngineError where it does not answer."""
    return ServerEngine(
        ServerConfig(
            url=cfg.url,
            model=cfg.model,
            model_id=cfg.model_id,
            key_file=cfg.key_file,
            concurrency=cfg.concurrency,
            patience=cfg.patience,
            timeout=cfg.timeout,
        )
    )


def identity(cfg: ServedJudge) -> dict[str, Any]:
    """The judge as plans name it: other weights under its name are another evaluation. EngineError where its server
    does not answer, ConfigError where nothing tells which weights it has."""
    try:
        return {"served": model_key(open_judge(cfg).model_record())}
    except ConfigError as error:
        raise ConfigError(f"the judge: {error}".replace("--model-id", "judge.model_id")) from None


def ask(engine: Engine, texts: Sequence[str], max_tokens: int) -> list[str]:
    """Greedy answer to each text, in lower case; equal texts are asked once. EngineError for a request that failed."""
    once = list(dict.fromkeys(texts))
    questions = [Question(Problem(index, text, ""), [Message("user", text)]) for index, text in enumerate(once)]
    said: dict[str, str] = {}
    for question, answers in engine.complete(questions, Sampling(temperature=0.0, max_tokens=max_tokens)):
        if answers[0].error:
            raise no_verdict(engine, answers[0].error)
        said[question.problem.text] = answers[0].text.strip().lower()
    return [said[text] for text in texts]


def no_verdict(engine: Engine, why: str) -> EngineError:
    """The error of a judge whose answer is none."""
    return EngineError(f"the judge {dict(engine.facts)} gave no verdict ({why}): ask a larger model, or again")
