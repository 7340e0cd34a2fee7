"""Sentences of stepaudio-tiny: short commands, each with a speaker and a speed that are asked for.

A hash of the text decides which are held out, so that no stage of training can hear one.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt

from data.drawn.splits import Split, split_of
from stepstack.config import ConfigError, Strict

SLOTS = (
    ("open", "close", "move", "bring", "find", "paint"),
    ("the", "my", "this"),
    ("red", "green", "blue", "yellow", "black", "white"),
    ("box", "cup", "door", "lamp", "chair", "bottle", "basket", "hammer"),
    ("near the", "under the", "behind the"),
    ("window", "table", "garden", "kitchen", "river", "station"),
)
SPEEDS = {"(slow1)": 0.66, "": 0.82, "(fast1)": 1.02}  # by tag; of the voice, whose faster words even Whisper loses
MAX_FAILED_DRAWS = 100_000


VoiceName = Literal[
    "hibari",
    "kokoro:alpha",
    "kokoro:gongitsune",
    "kokoro:kumo",
    "kokoro:nezumi",
    "kokoro:tebukuro",
    "flite:awb",
    "flite:kal16",
    "flite:rms",
    "flite:slt",
]


@dataclass(frozen=True, slots=True)
class Line:
    """One utterance that is asked for."""

    text: str
    speaker: str
    tag: str

    @property
    def key(self) -> str:
        """Name that no other line of a set has."""
        return f"{self.speaker}|{self.tag}|{self.text}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Speaker(Strict):
    """One who reads lines aloud, and the voice that does it."""

    name: str
    """Name, one word, by which a line asks for this speaker."""
    voice: VoiceName = "hibari"
    """Package that speaks, and after a colon its style."""
    factor: Annotated[float, Field(ge=0.6, le=1.3)] = 1.0
    """Factor on the pitch and the formants of the voice, of which it makes another one."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w-]*", self.name):
            raise ValueError(f"the speaker's name {self.name!r} is no single word of letters, digits, - and _")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sentences(Strict):
    """Commands that are drawn, and the sizes of the sets of them."""

    type: Literal["sentences"] = "sentences"
    """Choice of the data: drawn commands."""
    train: NonNegativeInt = 3000
    """Distinct texts of the training set, each with a random speaker and tag."""
    engine: NonNegativeInt = 1500
    """Distinct texts, none of the training set's, that the teacher speaks."""
    select: NonNegativeInt = 48
    """Distinct texts that are watched during training; disjoint from the other sets."""
    test: NonNegativeInt = 200
    """Distinct texts that are reported; disjoint from the other sets."""
    seed: NonNegativeInt = 0
    """Seed of the drawing; which texts are held out does not depend on it."""
    speakers: tuple[Speaker, ...] = (Speaker(name="heart"), Speaker(name="deep", factor=0.83))
    """Speakers of the recordings, drawn evenly. Other ones than those of the tokens that are there are recorded anew:
    name another folder in ``tokens``, and run ``stepstack data``."""

    def __post_init__(self) -> None:
        if not self.speakers:
            raise ValueError("data.speakers is empty: name one who reads the lines")
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"data.speakers: two have one name (of {', '.join(self.names)}): rename one")

    @property
    def names(self) -> list[str]:
        """Names of the speakers."""
        return [speaker.name for speaker in self.speakers]

    def speaker(self, name: str) -> Speaker:
        """Speaker of a name. ConfigError for one that there is not."""
        for speaker in self.speakers:
            if speaker.name == name:
                return speaker
        raise ConfigError(f"no speaker {name!r}: there are {', '.join(self.names)}")


def lines(cfg: Sentences, split: Split) -> list[Line]:
    """Lines of a split, a pure function of the config; those of train come first, then those of the engine.

    ConfigError where there are not that many texts.
    """
    wanted = {"train": cfg.train + cfg.engine, "select": cfg.select, "test": cfg.test}[split]
    rng = random.Random(f"{cfg.seed}-{split}")
    found: dict[str, Line] = {}
    in_vain = 0
    while len(found) < wanted:
        text = " ".join(rng.choice(slot) for slot in SLOTS)
        speaker, tag = rng.choice(cfg.names), rng.choice(list(SPEEDS))
        if split_of(text) == split and text not in found:
            found[text], in_vain = Line(text, speaker, tag), 0
        elif (in_vain := in_vain + 1) == MAX_FAILED_DRAWS:
            raise ConfigError(f"{wanted} texts of the split {split} are wanted, there are {len(found)}: ask for fewer")
    return list(found.values())


def swapped(line: Line, cfg: Sentences) -> Line:
    """Line of the same text with another speaker (of several) and another tag, for the test of the tags."""
    tags, speakers = list(SPEEDS), cfg.names
    return Line(
        line.text,
        speakers[(speakers.index(line.speaker) + 1) % len(speakers)],
        tags[(tags.index(line.tag) + 1) % len(tags)],
    )


def check_line(line: Line, cfg: Sentences) -> None:
    """ConfigError for an empty text, a word that the grammar lacks, or an unknown speaker or tag."""
    if not line.text.strip():
        raise ConfigError("the text is empty: give words to say")
    if unknown := [word for word in line.text.split() if word not in words()]:
        raise ConfigError(f"the grammar has no word {unknown[0]!r} (of {line.text!r}): it has {', '.join(words())}")
    cfg.speaker(line.speaker)
    if line.tag not in SPEEDS:
        raise ConfigError(f"no tag {line.tag!r}: there are {', '.join(tag for tag in SPEEDS if tag)}, or none")


def words() -> list[str]:
    """Words of the grammar, each once."""
    return list(dict.fromkeys(word for slot in SLOTS for phrase in slot for word in phrase.split()))


def jsgf() -> str:
    """The grammar in PocketSphinx's form."""
    slots = " ".join(f"({' | '.join(slot)})" for slot in SLOTS)
    return f"#JSGF V1.0; grammar sentences; public <sentence> = {slots};"
