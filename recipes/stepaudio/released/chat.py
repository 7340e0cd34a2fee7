"""Chat form of Step-Audio-TTS-3B: a system's turn, a reference turn in the voice, and the target turn.

[bos] [begin] system\\n...           [end]
      [begin] human\\n reference text [end] [begin] assistant\\n reference tokens [end]
      [begin] human\\n (tags)text     [end] [begin] assistant\\n -> tokens [end]
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from data.drawn.sentences import Line
from data.errors import DataError
from recipes.stepaudio.config import Config
from stepstack.config import ConfigError
from stepstack.models.speech.tokenizer import Codes
from stepstack.models.speech.tokens import TEXT, TokenLayout
from stepstack.user_code import resolve_path

# Ours: the released words are longer, and a model that learned those is given them by released.system.
SYSTEM = {
    "plain": "你是配音演员。请按文本开头括号里的情感、语言、语速等标签朗读，没有标签时按文意朗读。",
    "speaker": "你是配音演员。请用[{speaker}]的声音，按文本开头括号里的情感、语言、语速等标签朗读。",
    "rap": "请用上文的音色，把文本说唱出来。",
    "hum": "请用上文的音色，把文本哼唱出来。",
}
SUNG = {"RAP": "rap", "哼唱": "hum"}  # first tags that have a system's turn of their own
FIRST_TAG = re.compile(r"^[（(]([^（()）]*)[）)]")


@dataclass(frozen=True, slots=True)
class Reference:
    """Reference turn: a text, and its codes by the voice that is to speak."""

    text: str
    codes: Codes


class ReleasedChat:
    """Prompts of a tokenizer in the released form."""

    def __init__(self, cfg: Config, tokenizer: PreTrainedTokenizerBase):
        """ConfigError for a file of system's words that lacks one."""
        self.ids, self.tokenizer = cfg.released, tokenizer
        self.layout = TokenLayout(cfg.released.first, *cfg.codebooks)
        self.words = SYSTEM if cfg.released.system is None else _words(cfg.released.system)

    def prompt(self, line: Line, reference: Reference, *, named: bool) -> tuple[int, ...]:
        """Ids of a prompt, open for the assistant's turn. ``named``: whether the system names the line's speaker.
        DataError for a text that holds audio tokens, or that the tokenizer reads as ids beyond the text's."""
        words = self.words[self._kind(line, named)].replace("{speaker}", line.speaker)
        ids = [self.ids.bos, self.ids.begin, *self._encode(f"system\n{words}"), self.ids.end]
        ids += self._turn("human\n", self._encode(reference.text, after="\n"))
        ids += self._turn("assistant\n", self.layout.interleave(*reference.codes))
        ids += self._turn("human\n", self._encode(f"{line.tag}{line.text}", after="\n"))
        return (*ids, self.ids.begin, *self._encode("assistant\n"))

    def _kind(self, line: Line, named: bool) -> str:
        found = FIRST_TAG.match(line.tag)
        if found and found[1] in SUNG:
            return SUNG[found[1]]
        return "speaker" if named and line.speaker else "plain"

    def _turn(self, role: str, content: list[int]) -> list[int]:
        return [self.ids.begin, *self._encode(role), *content, self.ids.end]

    def _encode(self, text: str, after: str = "") -> list[int]:
        """Ids of a text, without a space that a tokenizer puts before what it takes for a beginning: it is read behind
        ``after``, whose ids are taken off again."""
        if TEXT.search(text):
            raise DataError(f"{text!r:.60} holds audio tokens: a text is words")
        ids: list[int] = self.tokenizer(after + text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        before = len(self.tokenizer(after, add_special_tokens=False)["input_ids"]) if after else 0
        if wrong := [number for number in ids if number >= self.ids.first]:
            raise DataError(f"{text!r:.60}: the tokenizer makes id {wrong[0]} of it, text ends at {self.ids.first - 1}")
        return ids[before:]


def _words(path: str) -> dict[str, str]:
    found = json.loads(resolve_path(path).read_text(encoding="utf-8"))
    if lacking := sorted(SYSTEM.keys() - found.keys()):
        raise ConfigError(f"released.system={path} lacks {', '.join(lacking)}: it has a text for each")
    return found
