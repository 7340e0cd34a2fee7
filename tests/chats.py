"""Tokenizers with the chat templates of published models, as TRL's package holds them, over a vocabulary of bytes."""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from tests import tools

SPECIAL = {
    "qwen2_5": ("<|im_start|>", "<|im_end|>"),
    "qwen3": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "phi3": ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    "qwen2_5_vl": ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"),
}
ENDS = {"qwen2_5": "<|im_end|>", "qwen3": "<|im_end|>", "llama3": "<|eot_id|>", "phi3": "<|end|>"}
ENDS["qwen2_5_vl"] = "<|im_end|>"


def template(name: str) -> str:
    """The text of a template in TRL's package."""
    import trl

    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text()


def tokenizer(name: str) -> PreTrainedTokenizerFast:
    made = tools.bpe_tokenizer()
    made.add_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL[name]], special_tokens=True)
    if name == "llama3":
        made.bos_token = "<|begin_of_text|>"
    made.chat_template = template(name)
    return made


def end(name: str, made: PreTrainedTokenizerFast) -> int:
    """The token that ends a turn."""
    return made.convert_tokens_to_ids(ENDS[name])


def turns(*contents: str, system: str = "") -> list[dict[str, str]]:
    """Messages of a user and an assistant in turn."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]
    return [{"role": "system", "content": system}, *messages] if system else messages
