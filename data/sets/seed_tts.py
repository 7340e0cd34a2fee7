"""seed-tts-eval: texts with a recording of the voice that is to speak them.

The source is github.com/BytedanceSpeech/seed-tts-eval. A meta file has a line an utterance, ``name|text of the
prompt|audio file of the prompt|text to speak`` and, where there is one, ``|audio file`` of the recording of that text.
Files are named from the folder of the meta file.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from data.errors import DataError, refuse
from data.media.texts import numbered_lines
from stepstack.records import Problem

FOLDER = "seed_tts_eval"  # name in the folder of benchmark data
SOURCE = "github.com/BytedanceSpeech/seed-tts-eval"


@dataclass(frozen=True, slots=True)
class Utterance:
    """One line of a meta file. ``recording``: a person saying the text, where there is one."""

    name: str
    prompt_text: str
    prompt: Path
    text: str
    recording: Path | None


def read(file: Path) -> list[Utterance]:
    """Utterances of a meta file. DataError with all bad rows, each with its place."""
    if not file.is_file():
        raise DataError(f"{file} does not exist: get {SOURCE}, and unpack it there")
    found: dict[str, Utterance] = {}
    errors = []
    for number, row in numbered_lines(file):
        parts = [part.strip() for part in row.split("|")]
        if len(parts) not in (4, 5) or not all(parts):
            errors.append(f"{file}:{number}: must be name|prompt text|prompt wav|text, and |wav where there is one")
            continue
        name, prompt_text, prompt, text = parts[:4]
        recording = file.parent / parts[4] if len(parts) == 5 else None
        missing = [str(path) for path in (file.parent / prompt, recording) if path is not None and not path.is_file()]
        if name in found:
            errors.append(f"{file}:{number}: the name {name} stands there twice")
        elif missing:
            errors.append(f"{file}:{number}: {' and '.join(missing)} does not exist")
        else:
            found[name] = Utterance(name, prompt_text, file.parent / prompt, text, recording)
    refuse(errors, of="lines")
    if not found:
        raise DataError(f"{file} has no lines")
    return list(found.values())


def problems(file: Path, *, recorded: bool = False) -> list[Problem]:
    """Rows of an evaluation: the text to speak, whose gold is the utterance's name. ``recorded``: those with a
    recording of the text, which are resynthesised; DataError where there is none."""
    utterances = read(file)
    chosen = [(k, each) for k, each in enumerate(utterances) if each.recording is not None or not recorded]
    if not chosen:
        raise DataError(f"{file} names no recordings of its texts (a fifth part of its lines): nothing to resynthesise")
    return [Problem(index, each.text, each.name, _meta(each, recorded)) for index, each in chosen]


def _meta(each: Utterance, recorded: bool) -> dict[str, str]:
    """Fields of a row beside its text: recordings by their content, and where they lie (``source``)."""
    sound = each.recording if recorded else each.prompt
    assert sound is not None
    content = hashlib.sha256(sound.read_bytes()).hexdigest()
    return {"prompt_text": each.prompt_text, "sha256": content, "source": str(sound)}
