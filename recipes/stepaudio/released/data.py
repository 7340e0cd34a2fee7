"""Token files of recordings, and rows in the released chat form."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from data.drawn.sentences import Line
from data.drawn.splits import SPLITS, Split
from data.errors import DataError
from data.sets import speech
from data.sets.speech import Take
from recipes.stepaudio.config import Config, SpeechFiles
from recipes.stepaudio.released.chat import Reference, ReleasedChat
from stepstack.batching.rows import Row
from stepstack.config import ROOT, ConfigError
from stepstack.models.speech.tokenizer import PublishedTokenizer
from stepstack.report import jsonl
from stepstack.user_code import load_name

FACTS = "tokens.json"


def files(cfg: Config) -> SpeechFiles:
    assert isinstance(cfg.data, SpeechFiles), "a published model learns files"
    return cfg.data


def open_tokenizer(cfg: Config) -> PublishedTokenizer:
    """The published pair of codebooks. ConfigError where a part is missing."""
    path = files(cfg).paraformer
    if path is None:
        raise ConfigError(
            "the published linguistic codes are made of Paraformer's encoder output: give data.paraformer, a Python "
            "file with encode(wave) (docs/audio.md)"
        )
    return PublishedTokenizer(ROOT / cfg.tokens, load_name(path, "encode"))


def prepare(cfg: Config) -> str:
    """``stepstack data``: token files of the recordings of each split that the config names."""
    named, tokenizer = files(cfg).recordings, open_tokenizer(cfg)
    if "train" not in named:
        raise ConfigError("data.recordings names no train: give the meta file of the recordings that are learned")
    if tokenizer.sizes != cfg.codebooks:
        raise ConfigError(f"{cfg.tokens} has codebooks of {tokenizer.sizes}, the config {cfg.codebooks}: correct it")
    folder, counts = ROOT / files(cfg).folder, {}
    for split in SPLITS:
        if split in named:
            found = speech.read_recordings(ROOT / named[split])
            takes = [Take(line, whole(tokenizer, wave)) for line, wave in found]
            speech.save_takes(folder / f"{split}.safetensors", takes, tokenizer.digest)
            counts[split] = len(takes)
    jsonl.write_json_atomic(folder / FACTS, {"digest": tokenizer.digest, "codebooks": list(cfg.codebooks)})
    return f"{folder}: {', '.join(f'{count} {split}' for split, count in counts.items())}, codebooks {tokenizer.digest}"


def whole(tokenizer: PublishedTokenizer, wave_T: Tensor) -> tuple[list[int], list[int]]:
    """Codes of a wave, cut to whole groups."""
    linguistic, semantic = tokenizer.encode(wave_T)
    groups = min(len(linguistic) // 2, len(semantic) // 3)
    return linguistic[: 2 * groups], semantic[: 3 * groups]


def has_takes(cfg: Config) -> bool:
    """Whether there are token files at all."""
    return (ROOT / files(cfg).folder / FACTS).is_file()


def takes(cfg: Config, split: Split) -> list[Take]:
    """Takes of a split. DataError for files that are missing, or hold codes of other codebooks."""
    folder = ROOT / files(cfg).folder
    if not has_takes(cfg):
        raise DataError(f"{folder / FACTS} does not exist: make the tokens first (stepstack data {cfg.name})")
    facts = jsonl.read_json(folder / FACTS)
    if tuple(facts["codebooks"]) != cfg.codebooks:
        raise DataError(f"{folder} has codes of codebooks {facts['codebooks']}, the config {cfg.codebooks}: correct it")
    return speech.load_takes(folder / f"{split}.safetensors", facts["digest"])


@dataclass(frozen=True)
class Voices:
    """Takes by speaker, from which reference turns are drawn: those without a tag where there are any."""

    by_speaker: dict[str, list[Take]]

    @classmethod
    def of(cls, takes: Sequence[Take]) -> Voices:
        found: dict[str, list[Take]] = {}
        for take in takes:
            found.setdefault(take.line.speaker, []).append(take)
        return cls(found)

    def reference(self, line: Line, seed: int = 0) -> Reference:
        """Reference turn of a line: another text by its speaker. A pure function of line and seed. DataError where
        there is none."""
        others = [take for take in self.by_speaker.get(line.speaker, []) if take.line.text != line.text]
        if not others:
            known = ", ".join(sorted(self.by_speaker))
            raise DataError(
                f"no other recording of the speaker {line.speaker!r} for the reference turn of {line.text!r:.60}: "
                f"there are {known}"
            )
        plain = [take for take in others if not take.line.tag] or others
        chosen = random.Random(f"{seed}|{line.key}").choice(plain)
        return Reference(chosen.line.text, chosen.codes)


def rows(cfg: Config, learned: Sequence[Take], voices: Voices, chat: ReleasedChat, longest: int) -> list[Row]:
    """Training rows: the prompt, the audio tokens and the end. DataError that names the texts of rows longer than
    ``longest`` or than a micro-batch."""
    most = min(longest, cfg.layout.max_tokens)
    found: list[Row] = []
    too_long: list[str] = []
    for k, take in enumerate(learned):
        named = random.Random(f"{cfg.seed}|named|{take.line.key}|{k}").random() >= cfg.released.unnamed
        prompt = chat.prompt(take.line, voices.reference(take.line, cfg.seed + k), named=named)
        row = Row(k, prompt, (*chat.layout.interleave(*take.codes), cfg.released.end))
        found.append(row)
        if len(row) > most:
            too_long.append(f"{take.line.text!r:.40} ({len(row)} tokens)")
    if too_long:
        raise DataError(
            f"{len(too_long)} rows are over {most} tokens, the model's length or layout.max_tokens: "
            f"{', '.join(too_long[:5])}: raise layout.max_tokens, or leave them out"
        )
    return found


def digest(takes: Sequence[Take]) -> str:
    """Hash of what a teacher's voices are made of."""
    return hashlib.sha256(repr([(take.line.key, take.codes) for take in takes]).encode()).hexdigest()[:16]


def own_lines(cfg: Config) -> list[Line]:
    """Lines that a published teacher speaks."""
    assert cfg.engine.lines is not None
    file = Path(cfg.engine.lines)
    return speech.read_lines(file if file.is_absolute() else ROOT / file)
