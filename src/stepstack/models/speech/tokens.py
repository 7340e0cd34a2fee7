"""Layout of Step-Audio's dual-codebook tokens: every 120 ms two linguistic tokens, then three semantic ones.

Linguistic codes come at 16.67 Hz and semantic ones at 25 Hz. Their ids follow the text vocabulary, linguistic first. In
text a token is ``<audio_n>``, n being its id less that of the first one. (The repository's README calls the two streams
semantic and acoustic; names here are the paper's.)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

LINGUISTIC, SEMANTIC = 2, 3  # tokens of each kind in a group
GROUP = LINGUISTIC + SEMANTIC
GROUP_SECONDS = 0.12
TEXT = re.compile(r"<audio_(\d+)>")


@dataclass(frozen=True, slots=True)
class TokenLayout:
    """Ids of audio tokens: ``first`` is that of the first one, ``linguistic`` and ``semantic`` the codebooks' sizes."""

    first: int
    linguistic: int
    semantic: int

    @property
    def size(self) -> int:
        """Number of audio tokens."""
        return self.linguistic + self.semantic

    @property
    def vocab(self) -> int:
        """Number of ids up to the last audio token."""
        return self.first + self.size

    @property
    def first_semantic(self) -> int:
        return self.first + self.linguistic

    def interleave(self, linguistic: Sequence[int], semantic: Sequence[int]) -> list[int]:
        """Ids of the two streams of codes, ``L L S S S`` a group. What does not fill a group at the end is dropped.

        ValueError for a code that is not of its codebook.
        """
        for name, codes, size in (("linguistic", linguistic, self.linguistic), ("semantic", semantic, self.semantic)):
            if wrong := [code for code in codes if not 0 <= code < size]:
                raise ValueError(f"{name} code {wrong[0]} is not of a codebook of {size}")
        ids: list[int] = []
        for group in range(min(len(linguistic) // LINGUISTIC, len(semantic) // SEMANTIC)):
            ids += [self.first + code for code in linguistic[group * LINGUISTIC : (group + 1) * LINGUISTIC]]
            ids += [self.first_semantic + code for code in semantic[group * SEMANTIC : (group + 1) * SEMANTIC]]
        return ids

    def split(self, ids: Sequence[int]) -> tuple[list[int], list[int]]:
        """Codes of the two streams. ValueError names the first place where ids are not whole groups ``L L S S S``."""
        linguistic: list[int] = []
        semantic: list[int] = []
        for place, token in enumerate(ids):
            is_linguistic = place % GROUP < LINGUISTIC
            start, size = (self.first, self.linguistic) if is_linguistic else (self.first_semantic, self.semantic)
            if not start <= token < start + size:
                kind = "linguistic" if is_linguistic else "semantic"
                raise ValueError(f"token {place} is {token}, no {kind} one ({start} to {start + size - 1})")
            (linguistic if is_linguistic else semantic).append(token - start)
        if len(ids) % GROUP:
            raise ValueError(f"{len(ids)} tokens are no whole groups of {GROUP}: the last one has {len(ids) % GROUP}")
        return linguistic, semantic

    def whole_groups(self, ids: Sequence[int]) -> list[int]:
        """Audio ids without what is no audio and without the rest of a group at their end."""
        audio = [token for token in ids if self.first <= token < self.vocab]
        return audio[: len(audio) // GROUP * GROUP]

    def to_text(self, ids: Sequence[int]) -> str:
        """Text form ``<audio_n>`` of audio ids. ValueError for an id that is none."""
        if wrong := [token for token in ids if not self.first <= token < self.vocab]:
            raise ValueError(f"id {wrong[0]} is no audio token ({self.first} to {self.vocab - 1})")
        return "".join(f"<audio_{token - self.first}>" for token in ids)

    def from_text(self, text: str) -> list[int]:
        """Ids of a text of nothing but ``<audio_n>``. ValueError for anything else in it."""
        numbers = [int(number) for number in TEXT.findall(text)]
        if TEXT.sub("", text) or any(number >= self.size for number in numbers):
            raise ValueError(f"{text!r:.80} is no sequence of <audio_0> to <audio_{self.size - 1}>")
        return [self.first + number for number in numbers]


PUBLISHED = TokenLayout(first=65536, linguistic=1024, semantic=4096)
OFFLINE_SIZES = (256, 512)  # codebooks of the tokenizer that needs no published weights


def seconds(ids: Sequence[int]) -> float:
    """Duration of audio ids, counted by groups."""
    return len(ids) / GROUP * GROUP_SECONDS
