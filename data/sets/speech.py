"""Speech as data: recordings to tokens and codebooks, files of tokens, and the engine in which a teacher speaks.

The engine works shard by shard. A shard is a fixed range of the lines, its file a pure function of the lines, the
teacher and the seed, so any number of processes writes the same shards and a killed one leaves nothing half done. A
shard holds what was measured of each take; which takes are kept is decided afterwards, by thresholds that can then be
changed without speaking again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.drawn.sentences import Line
from data.errors import DataError, refuse
from data.media import audio
from data.media.texts import numbered_lines
from stepstack.models.speech.codebook import train_codebook
from stepstack.models.speech.tokenizer import Codes, OfflineTokenizer, linguistic_features, semantic_features
from stepstack.models.speech.tokens import LINGUISTIC, SEMANTIC, TokenLayout
from stepstack.report import jsonl
from stepstack.scoring import speech as scoring
from stepstack.scoring.speech import JudgedTake, TakeFilter, TakeMeasures

RATE = 16000


@dataclass(frozen=True, slots=True)
class Take:
    """One spoken line: its codes, by whole groups, and whether it ended by itself."""

    line: Line
    codes: Codes
    ended: bool = True

    @property
    def groups(self) -> int:
        return len(self.codes[0]) // LINGUISTIC


# -- files of tokens ------------------------------------------------------------------------------------------------


def save_takes(file: Path, takes: Sequence[Take], digest: str) -> None:
    """Write takes in one file of tensors. ``digest``: of the tokenizer whose codes they are."""
    file.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        "groups": torch.tensor([take.groups for take in takes], dtype=torch.int32),
        "linguistic": torch.tensor([code for take in takes for code in take.codes[0]], dtype=torch.int16),
        "semantic": torch.tensor([code for take in takes for code in take.codes[1]], dtype=torch.int16),
    }
    texts = [[take.line.text, take.line.speaker, take.line.tag, take.ended] for take in takes]
    content = {"digest": digest, "takes": json.dumps(texts, ensure_ascii=False)}
    partial = file.with_suffix(".partial")
    save_file(tensors, partial, metadata=content)
    partial.replace(file)


def load_takes(file: Path, digest: str) -> list[Take]:
    """Takes of a file. DataError for one that is missing or not whole, or whose codes are another tokenizer's."""
    if not file.is_file():
        raise DataError(f"{file} does not exist: make it first (make data)")
    try:
        with safe_open(file, framework="pt") as opened:
            content = opened.metadata() or {}
        tensors = load_file(file)
        texts, groups = json.loads(content["takes"]), tensors["groups"].tolist()
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise DataError(f"{file} is no file of tokens ({error}): make it again (make data)") from None
    if content["digest"] != digest:
        raise DataError(
            f"{file} has tokens of the codebooks {content['digest']}, the tokenizer is {digest}: make it again, or "
            "give the codebooks that it was made with"
        )
    linguistic = tensors["linguistic"].split([LINGUISTIC * count for count in groups])
    semantic = tensors["semantic"].split([SEMANTIC * count for count in groups])
    return [
        Take(Line(text, speaker, tag), (own.tolist(), other.tolist()), bool(ended))
        for (text, speaker, tag, ended), own, other in zip(texts, linguistic, semantic, strict=True)
    ]


class DurationModel:
    """Expected groups of a line: the logarithm is a sum over its words and over its speaker and tag, fitted by least
    squares on takes."""

    def __init__(self, takes: Sequence[Take]):
        """ValueError without takes."""
        if not takes:
            raise ValueError("no takes to learn durations from")
        names = {name for take in takes for name in _features(take.line)}
        self.places = {name: place for place, name in enumerate(sorted(names))}
        rows = np.stack([self._row(take.line) for take in takes])
        wanted = np.log([max(1, take.groups) for take in takes])
        self.weights = np.linalg.lstsq(rows, wanted, rcond=1e-6)[0]

    def groups(self, line: Line) -> float:
        """Expected groups of a line; a word that no take had adds nothing."""
        return float(np.exp(self._row(line) @ self.weights))

    def _row(self, line: Line) -> np.ndarray:
        row = np.zeros(len(self.places))
        for name in _features(line):
            if name in self.places:
                row[self.places[name]] += 1
        return row


def _features(line: Line) -> list[str]:
    return [*line.text.split(), f"{line.speaker}|{line.tag}"]


# -- recordings to tokens -------------------------------------------------------------------------------------------


def train_tokenizer(
    waves: Iterable[Tensor], encoder: Callable[[Tensor], Tensor], sizes: tuple[int, int], seed: int = 0
) -> OfflineTokenizer:
    """Tokenizer whose codebooks are k-means of the features of ``waves``."""
    linguistic, semantic = [], []
    for wave in waves:
        linguistic.append(linguistic_features(wave, encoder))
        semantic.append(semantic_features(wave))
    return OfflineTokenizer(
        train_codebook(torch.cat(linguistic), sizes[0], seed=seed),
        train_codebook(torch.cat(semantic), sizes[1], seed=seed),
        encoder,
    )


def tokenize(line: Line, wave: Tensor, tokenizer: OfflineTokenizer) -> Take:
    """Take of a recording, cut to whole groups. DataError for one under 120 ms."""
    try:
        linguistic, semantic = tokenizer.encode(wave)
    except ValueError as error:
        raise DataError(f"{line.text!r}: {error}") from None
    layout = TokenLayout(0, *tokenizer.sizes)
    return Take(line, layout.split(layout.interleave(linguistic, semantic)))


def read_recordings(file: Path, limits: audio.AudioLimits | None = None) -> list[tuple[Line, Tensor]]:
    """Recordings of a meta file in seed-tts-eval's form, ``name|text|audio file`` with an optional speaker and tag, as
    waves at 16 kHz. DataError with all bad rows, each with its place."""
    if not file.is_file():
        raise DataError(f"{file} does not exist")
    found, errors = [], []
    for number, row in numbered_lines(file):
        parts = row.split("|")
        try:
            if len(parts) < 3 or not parts[1].strip():
                raise DataError("must be name|text|audio file, the text not empty")
            wave = audio.read_audio(file.parent / parts[2], RATE, limits)
        except DataError as error:
            errors.append(f"{file}:{number}: {error}")
            continue
        speaker, tag = (*parts[3:5], "", "")[:2]
        found.append((Line(parts[1].strip(), speaker, tag), torch.from_numpy(wave)))
    refuse(errors, of="lines")
    return found


def read_lines(file: Path) -> list[Line]:
    """Lines of a text file, ``text`` or ``text|speaker|tag`` each. DataError for an empty text or file."""
    rows = [row for _, row in numbered_lines(file)]
    found = [Line(*(part.strip() for part in (*row.split("|"), "", "")[:3])) for row in rows]
    if wrong := [place for place, line in enumerate(found, 1) if not line.text]:
        raise DataError(f"{file}: text number {wrong[0]} is empty: write what is to be said")
    if not found:
        raise DataError(f"{file} has no lines")
    return found


# -- the engine -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EngineTake:
    """One take of the engine with its measures. ``number``: place of its line; ``sample``: which take of it."""

    take: Take
    number: int
    sample: int
    measures: TakeMeasures
    transcript: str = ""


Speak = Callable[[Sequence[Line], int], Sequence[Sequence[Take]]]
Judge = Callable[[Sequence[Take]], Sequence[tuple[TakeMeasures, str]]]


def run_engine(
    folder: Path,
    lines: Sequence[Line],
    speak: Speak,
    judge: Judge,
    *,
    identity: str,
    shard: int = 64,
    process: int = 0,
    processes: int = 1,
) -> list[Path]:
    """Write this process's shards that are not there yet; returns the files of all shards.

    ``speak(lines, first)`` gives the takes of each line, ``first`` being the place of the first one, from which its
    seeds are derived. ``identity`` says what made the takes (teacher, sampling, tokenizer): shards of another one in
    the folder are a DataError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(lines), shard)
    files = [folder / f"shard-{number:05d}.json" for number in range(len(starts))]
    for number, (start, file) in enumerate(zip(starts, files, strict=True)):
        if number % processes != process:
            continue
        part = list(lines[start : start + shard])
        header = {"identity": identity, "lines": [line.key for line in part]}
        if file.is_file():
            _read_shard(file, header)
            continue
        takes = [take for group in speak(part, start) for take in group]
        judged = list(zip(takes, judge(takes), strict=True))
        jsonl.write_json_atomic(file, header | {"takes": _records(judged, {line: k for k, line in enumerate(part)})})
    return files


def read_engine(files: Sequence[Path], lines: Sequence[Line], identity: str, shard: int = 64) -> list[EngineTake]:
    """All takes of the shards, in the order of the lines. DataError for a shard that is missing or another run's."""
    found = []
    for number, file in enumerate(files):
        if not file.is_file():
            raise DataError(f"{file} is missing: another process has not written it yet, or was killed: run it again")
        start = number * shard
        part = list(lines[start : start + shard])
        for take in _read_shard(file, {"identity": identity, "lines": [line.key for line in part]}):
            codes = (take["linguistic"], take["semantic"])
            said = Take(part[take["line"]], codes, take["measures"]["ended"])
            measures = TakeMeasures(**take["measures"])
            found.append(EngineTake(said, start + take["line"], take["sample"], measures, take["transcript"]))
    return found


def _read_shard(file: Path, header: dict[str, Any]) -> list[dict[str, Any]]:
    """Takes of a shard. DataError where the file is no whole shard, or of another run than ``header`` says."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        takes = record["takes"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is no whole shard ({error!r:.80}): remove it, and it is spoken again") from None
    for key, value in header.items():
        if record.get(key) != value:
            raise DataError(f"{file} is of another engine run (its {key} differs): remove the folder, or name another")
    return takes


def _records(judged: Sequence[tuple[Take, tuple[TakeMeasures, str]]], places: dict[Line, int]) -> list[dict[str, Any]]:
    samples: dict[int, int] = {}
    records = []
    for take, (measures, transcript) in judged:
        place = places[take.line]
        samples[place] = samples.get(place, -1) + 1
        records.append(
            {"line": place, "sample": samples[place], "linguistic": take.codes[0], "semantic": take.codes[1]}
            | {"measures": asdict(replace(measures, ended=take.ended)), "transcript": transcript}
        )
    return records


@dataclass(frozen=True)
class Kept:
    """Result of the filters: all that was ``spoken``, the best take of each line that has one (``best``), all that
    pass (``passed``), and the report: ``rates`` by filter, speaker and tag, the ``silent_texts`` without a kept take,
    and codebook use."""

    spoken: list[EngineTake]
    best: list[EngineTake]
    passed: list[EngineTake]
    rates: list[scoring.Counts]
    silent_texts: list[str]
    codebooks: dict[str, dict[str, float]]


def keep(takes: Sequence[EngineTake], limits: TakeFilter, layout: TokenLayout) -> Kept:
    """Filter takes, and choose the best of each line."""
    judged, passed = [], []
    for each in takes:
        line = each.take.line
        refused = scoring.failed_filters(each.measures, limits)
        judged.append(JudgedTake(line.key, refused, {"speaker": line.speaker, "tag": line.tag}))
        if not refused:
            passed.append(each)
    best: dict[int, EngineTake] = {}
    for each in sorted(passed, key=lambda each: (each.number, scoring.take_order(each.measures), each.sample)):
        best.setdefault(each.number, each)
    return Kept(
        list(takes),
        list(best.values()),
        passed,
        scoring.keep_rates(judged),
        scoring.texts_without_a_take(judged),
        {
            f"{stage} {name}": use
            for stage, of in (("spoken", takes), ("kept", list(best.values())))
            for name, use in codebook_use([each.take for each in of], layout).items()
        },
    )


def codebook_use(takes: Sequence[Take], layout: TokenLayout) -> dict[str, dict[str, float]]:
    """Use of both codebooks by takes."""
    sizes = {"linguistic": layout.linguistic, "semantic": layout.semantic}
    return {
        name: scoring.codebook_use(np.array([code for take in takes for code in take.codes[k]], dtype=np.int64), size)
        for k, (name, size) in enumerate(sizes.items())
    }
