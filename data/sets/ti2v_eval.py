"""Step-Video-TI2V-Eval: 298 first frames with prompts, real and anime, in three shapes, and pairs of clips of two
models.

The source is benchmark/Step-Video-TI2V-Eval of github.com/stepfun-ai/Step-Video-TI2V. Published layout: ``<domain>/<H,
S or V>/<number>.txt`` with the prompt, ``.png`` beside it with the first frame.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data.errors import DataError
from data.media import frames
from data.media.images import FilePicture
from data.media.texts import read_text
from data.media.videos import read_video
from stepstack.config import ROOT
from stepstack.harness import answers
from stepstack.harness.human.pairwise import Choice, ClipPair, Verdict
from stepstack.records import Problem
from stepstack.scoring import video

FOLDER = "ti2v_eval"  # name in the folder of benchmark data
SOURCE = "benchmark/Step-Video-TI2V-Eval of github.com/stepfun-ai/Step-Video-TI2V"
DOMAINS = {"real": "ti2v_eval_real", "anime": "ti2v_eval_ani"}
SHAPES = {"H": "landscape", "S": "square", "V": "portrait"}
DIMENSIONS = {  # dimensions of the published comparison
    "instruction": "Instruction adherence: which clip does what the prompt says?",
    "consistency": "Subject and background consistency: which keeps what the first frame shows?",
    "physics": "Adherence to physical laws: which moves as things do?",
}
MOTION = 5.0  # requested motion score, the usual one of Step-Video-TI2V
CLIPS = (".mp4", ".webm", ".gif")
Which = Literal["all", "there"]
MAX_NAMES = 20  # missing files that an error lists


@dataclass(frozen=True, slots=True)
class Item:
    """Item of the benchmark.

    ``name``: its path in the published layout, without ending. ``image``: path of the first frame, whether or not it
    exists.
    """

    name: str
    domain: str
    shape: str
    prompt: str
    image: Path


def read(folder: Path) -> list[Item]:
    """Every item, whether or not its picture exists. DataError for a folder without items and for an empty prompt."""
    items = []
    for domain, part in DOMAINS.items():
        for file in sorted((folder / part).glob("[HSV]/*.txt")):
            prompt = read_text(file).strip()
            if not prompt:
                raise DataError(f"{file} is empty: each prompt needs a text")
            name = str(file.relative_to(folder).with_suffix(""))
            items.append(Item(name, domain, file.parent.name, prompt, file.with_suffix(".png")))
    if not items:
        parts = " or ".join(DOMAINS.values())
        raise DataError(f"{folder} holds no <{parts}>/<H, S or V>/<number>.txt: get {SOURCE}")
    return items


def problems(folder: Path, which: Which) -> list[Problem]:
    """Rows of the evaluation, whose gold is the item's name. ``there``: those with a picture, with the indices of
    ``all``.

    DataError that lists the missing pictures, or for a folder with none.
    """
    items = read(folder)
    missing = [item for item in items if not item.image.is_file()]
    if missing and which == "all":
        raise DataError(
            f"{folder}: {len(missing)} of {len(items)} prompts have no picture: "
            f"{join_names([f'{item.name}.png' for item in missing])}. Get them from {SOURCE}, or evaluate on those "
            "that are there: --tasks ti2v_eval_partial"
        )
    if len(missing) == len(items):
        raise DataError(f"{folder} has prompts and no picture: get them from {SOURCE}")
    return [
        Problem(index, item.prompt, item.name, meta(item.image))
        for index, item in enumerate(items)
        if item.image.is_file()
    ]


def pairs(folder: Path, a: Path, b: Path, *, common: bool = False) -> list[ClipPair]:
    """Items of which both ``a`` and ``b`` hold clips.

    DataError where one lacks clips of the other, unless only the ``common`` ones are requested. DataError for two kinds
    of files too, by which a viewer could distinguish the models.
    """
    by_item = {item.name: item for item in read(folder)}
    clips_a, clips_b = clips(a), clips(b)
    if strange := sorted((clips_a.keys() | clips_b.keys()) - by_item.keys()):
        raise DataError(
            f"{folder} has no items {join_names(strange)}: clips are named <domain>/<shape>/<number> as these are"
        )
    for one, other, has, lacks in ((a, b, clips_a, clips_b), (b, a, clips_b, clips_a)):
        if (odd := sorted(has.keys() - lacks.keys())) and not common:
            raise DataError(
                f"{other} lacks {len(odd)} clips of {one}: {join_names(odd)}. Make them, or compare with --common"
            )
    names = [name for name in by_item if name in clips_a and name in clips_b]
    if not names:
        raise DataError(f"{a} and {b} have no clip of the same item: generate clips of the same prompts")
    kinds = {clip[name].suffix for name in names for clip in (clips_a, clips_b)}
    if len(kinds) > 1:
        raise DataError(
            f"{a} and {b} hold files of {', '.join(sorted(kinds))}, which would tell them apart: convert them"
        )
    items = [by_item[name] for name in names]
    if bare := [f"{item.name}.png" for item in items if not item.image.is_file()]:
        raise DataError(
            f"{folder} lacks {len(bare)} pictures of clips that are there: {join_names(bare)}. Get them from {SOURCE}"
        )
    return [ClipPair(i.name, i.domain, i.prompt, i.image, clips_a[i.name], clips_b[i.name]) for i in items]


def clips(folder: Path) -> dict[str, Path]:
    """Clip of each item in an evaluation of ti2v_eval (samples.jsonl; the first sample of each item) or in a folder.

    The folder has the published layout with clips in place of pictures. DataError for any other folder, and for clips
    that no longer exist.
    """
    if (folder / "samples.jsonl").is_file():
        rows = [row for row in answers.read(folder / "samples.jsonl") if row.sample == 0 and row.finish != "error"]
        clip_of_item = {row.gold: ROOT / row.media[0] for row in rows}
    else:
        files = sorted(file for file in folder.glob("*/[HSV]/*") if file.suffix in CLIPS)
        clip_of_item = {str(file.relative_to(folder).with_suffix("")): file for file in files}
    if not clip_of_item:
        raise DataError(
            f"{folder} holds no clips: give runs/<name>/evals/<label>/{FOLDER}-... or a folder of "
            f"<domain>/<shape>/<number>{{{', '.join(CLIPS)}}}"
        )
    if gone := [str(file) for file in clip_of_item.values() if not file.is_file()]:
        raise DataError(f"{folder}: {len(gone)} clips are gone: {join_names(gone)}. Generate them again")
    return clip_of_item


@dataclass(frozen=True, slots=True)
class FirstFrameJudge:
    """Measured judge of one dimension, consistency: the clip whose first frame is nearer to the picture wins.

    Nearer by less than ``tie`` dB of PSNR counts as a tie. A still clip wins here, so the judge is no evidence on the
    other dimensions.
    """

    tie: float = 0.5
    dimensions: tuple[str, ...] = ("consistency",)

    def verdicts(self, pairs: Sequence[ClipPair]) -> list[Verdict]:
        return [Verdict(pair.name, "consistency", "first_frame", self._choice(pair)) for pair in pairs]

    def _choice(self, pair: ClipPair) -> Choice:
        assert pair.given is not None, "every item of this set has a picture"
        a, b = (first_frame(read_video(clip, 1)[0], pair.given) for clip in (pair.a, pair.b))
        return "tie" if abs(a - b) < self.tie else "a" if a > b else "b"


def first_frame(clip: frames.Frames, picture: Path) -> float:
    """PSNR in dB of the first frame against the picture, scaled and cropped to its size like for sampling."""
    image = np.asarray(FilePicture(str(picture)).image())
    return video.psnr(clip[0], frames.fit(image[None], clip.shape[1:3])[0])


def meta(image: Path) -> dict[str, Any]:
    """Fields of a row beside its prompt: the requested motion score, and the picture by its content."""
    content = hashlib.sha256(image.read_bytes()).hexdigest()
    return {"motion": MOTION, "sha256": content, "source": str(image)}


def join_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more
