"""Pairs of spoken answers of two models, for blind votes: of two evaluations of one task."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from data.errors import DataError
from data.media import audio
from data.sets import seed_tts
from stepstack.config import ROOT
from stepstack.harness import answers
from stepstack.harness.answers import Sample
from stepstack.harness.human.pairwise import ClipPair

NO_TAG = "no tag"
QUESTIONS = {
    "naturalness": "Naturalness: which sounds more like a person who speaks?",
    "words": "Words: which says the text, all of it and nothing else?",
}
STYLE = {"instruction": "Instruction: which follows the tag before the text?"}
VOICE = {"voice": "Voice: which sounds more like the given voice?"}
TAG = re.compile(r"[(（][^()（）]+[)）]")
MAX_NAMES = 20  # rows that an error lists


def pairs(a: Path, b: Path, voices: Path | None = None, *, common: bool = False) -> list[ClipPair]:
    """Answers to the same rows, the first sample of each, split by the tags before the text. ``voices``: the meta file
    of the evaluation (seed-tts-eval's form), whose recordings are then heard beside them.

    DataError where one lacks answers of the other (unless only the ``common`` ones are asked for), for rows of other
    texts, and for sounds at two rates, by which a listener could tell the models.
    """
    spoken_a, spoken_b = spoken(a), spoken(b)
    for one, other, has, lacks in ((a, b, spoken_a, spoken_b), (b, a, spoken_b, spoken_a)):
        if (odd := sorted(has.keys() - lacks.keys())) and not common:
            raise DataError(f"{other} lacks rows {odd[:MAX_NAMES]} of {one}: evaluate it too, or give --common")
    rows = sorted(spoken_a.keys() & spoken_b.keys())
    if not rows:
        raise DataError(f"{a} and {b} have no row in common: evaluate both on one task")
    if differ := [row for row in rows if spoken_a[row].prompt != spoken_b[row].prompt]:
        raise DataError(f"{a} and {b} were asked other texts in rows {differ[:MAX_NAMES]}: evaluate both on one task")
    sounds = {id(found): {row: ROOT / found[row].media[0] for row in rows} for found in (spoken_a, spoken_b)}
    rates = {audio.wav_rate(file) for found in sounds.values() for file in found.values()}
    if len(rates) > 1:
        raise DataError(f"{a} and {b} have sounds at {sorted(rates)} samples a second, which would tell them apart")
    given = {} if voices is None else {each.name: each.prompt for each in seed_tts.read(voices)}
    found = []
    for row in rows:
        sample = spoken_a[row]
        if given and sample.gold not in given:
            raise DataError(f"{voices} has no utterance {sample.gold}: give the meta file of this evaluation")
        tags = " ".join(TAG.findall(sample.prompt.partition(sample.problem)[0])) or NO_TAG
        files = (sounds[id(spoken_a)][row], sounds[id(spoken_b)][row])
        found.append(ClipPair(str(row), tags, _asked(sample), given.get(sample.gold), *files))
    return found


def questions(pairs: Sequence[ClipPair]) -> dict[str, str]:
    """Questions that voters are asked: of tags and of the voice only where the pairs have them."""
    tagged, given = any(pair.group != NO_TAG for pair in pairs), any(pair.given is not None for pair in pairs)
    return QUESTIONS | (STYLE if tagged else {}) | (VOICE if given else {})


def spoken(folder: Path) -> dict[int, Sample]:
    """First sample of each row that has a sound. DataError for a folder that is no evaluation of spoken answers."""
    file = folder / "samples.jsonl"
    if not file.is_file():
        raise DataError(
            f"{file} does not exist: give the folder of an evaluation, runs/<name>/evals/<label>/<task>-..."
        )
    rows = {row.index: row for row in answers.read(file) if row.sample == 0 and row.media and row.finish != "error"}
    if not rows:
        raise DataError(f"{file} has no sounds: evaluate a task whose answers are spoken to files, such as clips")
    if gone := [row.media[0] for row in rows.values() if not (ROOT / row.media[0]).is_file()]:
        raise DataError(f"{folder}: {len(gone)} sounds are gone, such as {gone[0]}: evaluate again")
    return rows


def _asked(sample: Sample) -> str:
    """Prompt without the speaker's name, which a listener need not know."""
    before, text, _ = sample.prompt.partition(sample.problem)
    return " ".join([*TAG.findall(before), text])
