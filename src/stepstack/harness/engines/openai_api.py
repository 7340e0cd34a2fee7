"""OpenAI's API as servers really have it: which settings one takes, how its answers end, which model it says it serves.

No torch.
"""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from stepstack.config import ConfigError
from stepstack.generation import http
from stepstack.generation.prompts import NotText, SpokenChat, SpokenTurn
from stepstack.generation.types import EngineError, Finish, Sampling
from stepstack.harness.engine import Question

FINISHES: Mapping[str, Finish] = {
    **dict.fromkeys(("stop", "eos", "eos_token", "end_turn", "stop_sequence"), "stop"),
    **dict.fromkeys(("length", "max_tokens", "model_length"), "length"),
}
OPTIONAL = ("stream", "stream_options", "seed", "top_k")  # settings that a request can do without
DEFAULTS = {"temperature": 1.0, "top_p": 1.0}  # settings that mean nothing at this value
BOUND, OTHER_BOUND = "max_tokens", "max_completion_tokens"  # the same setting by its old and its new name
UNSUPPORTED = re.compile(
    r"unsupported|unrecogni[sz]ed|unknown|unexpected|does(?: not|n.t) support|(?:extra|additional) \w+"
    r"|(?:not|n.t|never) (?:be )?(?:\w+ )?(?:supported|permitted|allowed|recogni[sz]ed|accepted|implemented)"
    r"|(?:invalid|no such) (?:parameter|argument|field|option)",
    re.IGNORECASE,
)
TELLING = ("root", "parent", "revision", "digest", "meta")  # facts of a listed model that follow from its weights
NAMES_WEIGHTS = ("root", "parent")  # those that are names: they tell something where they are a folder's or a hub's
OLD = timedelta(days=1)  # age from which ``created`` cannot be the time at which it was asked for


class Dialect:
    """Settings that a server does not take, learned from its refusals. ``unsupported``: their names, in the order in
    which they were refused."""

    def __init__(self) -> None:
        self.unsupported: dict[str, None] = {}

    def request(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The body without what the server does not take, its bound under the name that it knows."""
        sent = {name: value for name, value in body.items() if name not in self.unsupported}
        if BOUND in self.unsupported:
            sent[OTHER_BOUND] = body[BOUND]
        return sent

    def left_out(self, body: Mapping[str, Any]) -> tuple[str, ...]:
        """Settings of a body that the server does not get, sorted."""
        named = {BOUND: f"{BOUND} (sent as {OTHER_BOUND})"}
        return tuple(named.get(name, name) for name in sorted(self.unsupported) if name in body)

    def learn(self, sent: Mapping[str, Any], refused: http.Refused) -> bool:
        """Whether a request was refused for settings that it can do without; they are left out from now on."""
        if refused.status not in (400, 422) or not UNSUPPORTED.search(refused.message):
            return False
        optional = [*OPTIONAL, BOUND, *(name for name, value in DEFAULTS.items() if sent.get(name) == value)]
        named = [name for name in optional if name in sent and _speaks_of(refused.message, name)]
        self.unsupported |= dict.fromkeys(named)
        return bool(named)


def _speaks_of(message: str, name: str) -> bool:
    return re.search(rf"(?<!\w){name}(?!\w)", message) is not None


def body_of(question: Question, sampling: Sampling, model: str, seed: int, where: str) -> tuple[str, dict[str, Any]]:
    """(path, JSON) of the request for one sample. EngineError for a question that is not in text."""
    if isinstance(question.request, NotText) and not isinstance(question.request, SpokenChat):
        raise EngineError(f"{where} is asked in text only: evaluate all else with an engine of their recipe")
    body: dict[str, Any] = {
        "model": model,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        BOUND: sampling.max_tokens,
        "seed": seed,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if sampling.top_k > 0:
        body["top_k"] = sampling.top_k
    if isinstance(question.request, str):
        return "/v1/completions", body | {"prompt": question.request}
    if isinstance(question.request, SpokenChat):
        turns = [{"role": turn.role, "content": heard(turn)} for turn in question.request.turns]
        return "/v1/chat/completions", body | {"messages": turns}
    return "/v1/chat/completions", body | {"messages": [message._asdict() for message in question.request]}


def heard(turn: SpokenTurn) -> str | list[dict[str, Any]]:
    """Content of a turn: its words, or its recording in the form of OpenAI's API."""
    if turn.file is None:
        return turn.text
    sound = {"data": base64.b64encode(turn.file.read_bytes()).decode(), "format": turn.file.suffix.lstrip(".").lower()}
    return [{"type": "input_audio", "input_audio": sound}]


async def read_answer(chunks: AsyncIterator[dict[str, Any] | None], sampling: Sampling) -> dict[str, Any]:
    """The fields of the answer that chunks make, up to and with its first stop string.

    An answer that is over without a reason has reached its bound where it has as many tokens, else it has ended by
    itself. ConnectionError for chunks that just end, EngineError for those of another form.
    """
    text, pieces = "", 0
    usage: int | None = None
    finish: str | None = None
    over = False
    longest = max(map(len, sampling.stop), default=0)
    async for chunk in chunks:
        if chunk is None:
            over = True
            continue
        usage = _counted(chunk, usage)
        if not chunk.get("choices"):
            continue
        piece, reason = _piece(chunk)
        finish = reason or finish
        if piece:
            searched = max(0, len(text) - longest + 1)  # a stop string that ends in this piece begins after here
            text, pieces = text + piece, pieces + 1
            ends = [at + len(s) for s in sampling.stop if (at := text.find(s, searched)) >= 0]
            if ends:
                return {"text": text[: min(ends)], "tokens": usage or pieces, "finish": "stop"}
    tokens = pieces if usage is None else usage
    if finish is None and not over:
        raise ConnectionError("the stream ended before the answer did")
    if finish is None:
        finish = "length" if tokens >= sampling.max_tokens else "stop"
    if finish not in FINISHES:
        return {"finish": "error", "error": f"the server ended the answer with {finish!r}"}
    return {"text": text, "tokens": tokens, "finish": FINISHES[finish]}


def _counted(chunk: Mapping[str, Any], before: int | None) -> int | None:
    """Tokens of the answer as the server counts them."""
    counts = chunk.get("usage")
    count = counts.get("completion_tokens") if isinstance(counts, dict) else None
    return before if count is None else count


def _piece(chunk: Mapping[str, Any]) -> tuple[str, str | None]:
    """(text, reason of the end) of a chunk of a stream, or of an answer in one piece."""
    choices = chunk["choices"]
    choice = choices[0] if isinstance(choices, list) else None
    if isinstance(choice, dict) and choice.keys() & {"delta", "message", "text", "finish_reason"}:
        turn = choice.get("delta") or choice.get("message")
        text = turn.get("content") if isinstance(turn, dict) else choice.get("text")
        if text is None or isinstance(text, str):
            return text or "", choice.get("finish_reason")
    raise EngineError(f"the server's answer is not of OpenAI's form: {str(chunk)[:200]}")


def listed_models(answer: Any, url: str) -> dict[str, Mapping[str, Any]]:
    """Rows of /v1/models by the model's id. EngineError for an answer of another form."""
    rows = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(rows, list) or not all(isinstance(r, dict) and isinstance(r.get("id"), str) for r in rows):
        raise EngineError(f"{url}/v1/models does not list models in OpenAI's form: correct the url, or name the model")
    return {row["id"]: row for row in rows}


def identity_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a listed model that follow from its weights, without the time of its making."""
    facts = {name: row[name] for name in TELLING if row.get(name)}
    return {name: v for name, v in facts.items() if name not in NAMES_WEIGHTS or "/" in str(v)}


def time_of_making(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """``created`` of one model's rows, listed at different seconds; {} where it is missing or is a clock's, which many
    servers show in its place."""
    times = {row.get("created") for row in rows}
    [time] = times if len(times) == 1 else [None]
    return {"created": time} if time else {}


def is_old(created: Any) -> bool:
    """Whether a time in seconds, or its absence, cannot be the clock's."""
    return not isinstance(created, int | float) or created < (datetime.now(UTC) - OLD).timestamp()


def one_of(names: Sequence[str], url: str) -> str:
    """The only model that is listed. ConfigError for none or several."""
    if len(names) == 1:
        return names[0]
    which = f"set server.model (--server-model) to one of {', '.join(names)}" if names else "start it with one"
    raise ConfigError(f"{url} serves {len(names)} models: {which}")
