r"""Open-Reasoner-Zero's zero-setting prompt, as its released code renders it for a base model: plain text, no chat
template.

The wording is a published hyper-parameter and is kept to the letter (Open-Reasoner-Zero, MIT licence,
``playground/zero_setting_base.py``; the paper's Table 1 prints an earlier one). The prompt ends inside ``<think>``,
so a response begins there, and its template engine drops the newline after the problem, so one newline stands before
"Assistant:".
"""

from __future__ import annotations

from collections.abc import Sequence

from recipes.orz.config import QUESTION, ChatPrompt, Overlong, PromptConfig, Style, StylePrompt, TemplatePrompt
from stepstack.generation import prompts
from stepstack.generation.prompts import Message, Tokenizer
from stepstack.generation.types import Prompt
from stepstack.records import Problem

STOP = ("User:", "Human:", "Assistant:", "</answer>")  # kept in the response: the grader needs </answer>

_SYSTEM = (
    "A conversation between User and Assistant. The User asks a question, and the Assistant solves it. The "
    "Assistant first thinks about the reasoning process in the mind and then provides the User with the answer. The"
    " reasoning process is enclosed within <think> </think> and answer is enclosed within <answer> </answer> tags, "
    "respectively, i.e., <think> reasoning process here </think> <answer> answer here </answer>. "
)
_INSTRUCTION = (
    "You must put your answer inside <answer> </answer> tags, i.e., <answer> answer here </answer>. And your final "
    "answer will be extracted automatically by the \\boxed{} tag.\nThis is the problem:\n"
)
_END = "\nAssistant: <think>"

_EXAMPLES = (
    ("What is 4 + 9?", "4 + 9 = 13.", "13"),
    ("What is 30 - 12 + 5?", "30 - 12 = 18. 18 + 5 = 23.", "23"),
    ("What is 8 - 15?", "8 - 15 = -7.", "-7"),
)


def render(problem: str, style: Style = "orz") -> str:
    """The prompt text of a problem, without the begin-of-sequence token."""
    if style == "short":
        return f"User: {problem}=?{_END}"
    if style == "examples":
        shots = (f"User: {q}{_END}{why}</think> <answer>\\boxed{{{a}}}</answer>\n\n" for q, why, a in _EXAMPLES)
        return "".join(shots) + f"User: {problem}{_END}"
    return f"{_SYSTEM}User: {_INSTRUCTION}{problem}{_END}"


def request_of(problem: Problem, cfg: PromptConfig) -> str | list[Message]:
    """How a problem is put to the model: a text to go on with, or a chat."""
    match cfg:
        case StylePrompt():
            return render(problem.text, cfg.style)
        case TemplatePrompt():
            return cfg.text.replace(QUESTION, problem.text)
        case ChatPrompt():
            system = [] if cfg.system is None else [Message("system", cfg.system)]
            return [*system, Message("user", cfg.text.replace(QUESTION, problem.text))]


def encode(
    problem: Problem,
    request: str | Sequence[Message],
    tokenizer: Tokenizer,
    max_tokens: int,
    overlong: Overlong = "error",
) -> Prompt | None:
    """Token ids of ``request``, the problem's prompt: at most ``max_tokens``, begin-of-sequence included.

    A longer prompt raises ValueError ("error"), gives None ("drop") or loses tokens after the begin of sequence
    ("left"), never at its end, which opens the response.
    """
    ids = prompts.encode(request, tokenizer)
    if len(ids) > max_tokens:
        if overlong == "drop":
            return None
        if overlong == "error":
            raise ValueError(
                f"problem {problem.index}: its prompt has {len(ids)} tokens, more than max_tokens={max_tokens}; raise "
                "it, or set overlong to 'drop' or 'left'"
            )
        if overlong != "left":
            raise ValueError(f"overlong={overlong!r} is not one of 'error', 'drop', 'left'")
        if not isinstance(request, str):
            raise ValueError(f"problem {problem.index}: a chat is never cut: set overlong to 'drop'")
        bos = ids[: tokenizer.bos_token_id is not None]
        keep = max_tokens - len(bos)
        end = tokenizer(_END, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        if keep < len(end):
            raise ValueError(f"max_tokens={max_tokens} does not hold even {_END!r} ({len(end)} tokens): raise it")
        ids = bos + ids[-keep:]
    return Prompt(problem, ids)
