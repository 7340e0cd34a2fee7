"""Published sets of first frames and prompts as evaluation tasks: an answer is the file of a clip, an MP4.

What is measured is only whether a clip begins with its picture, and how much moves in it. Step-Video-TI2V-Eval is then
judged by voters (``stepstack votes``), VBench-I2V's prompts by VBench (``stepstack vbench``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

from data.errors import DataError
from data.media import frames
from data.media.images import FilePicture
from data.media.videos import read_video
from data.sets import ti2v_eval
from data.sets.ti2v_eval import DOMAINS, FOLDER, SHAPES
from recipes.stepvideo.evaluation import vbench
from stepstack.config import ROOT
from stepstack.generation.prompts import ClipPrompt
from stepstack.generation.types import Answer, ClipBudget
from stepstack.harness.metrics import Metric, Question, mean, part, scored
from stepstack.harness.task import Task
from stepstack.records import Problem, Score, gold_text


def step_video(which: ti2v_eval.Which, name: str, about: str) -> Task:
    """Step-Video-TI2V-Eval, in <data>/ti2v_eval."""
    return _task(name, about, lambda data: ti2v_eval.problems(data / FOLDER, which), 1, metrics_by_kind())


def vbench_i2v(name: str, about: str) -> Task:
    """The prompts and first frames of a clone of VBench, in <data>/VBench; five clips of each."""
    return _task(name, about, lambda data: vbench_rows(data / vbench.CLONE), vbench.SAMPLES, [*MEASURED])


def vbench_rows(clone: Path) -> list[Problem]:
    """DataError for a clone without prompts, and for first frames that are missing."""
    if not (clone / vbench.INFO).is_file():
        raise DataError(f"{clone / vbench.INFO} does not exist: clone https://github.com/Vchitect/VBench there")
    images = {prompt: clone / vbench.IMAGES / name for prompt, name in vbench.prompts(clone).items()}
    if missing := sorted({image.name for image in images.values() if not image.is_file()}):
        raise DataError(
            f"{clone / vbench.IMAGES} lacks {len(missing)} pictures: {ti2v_eval.join_names(missing)}. Run "
            "vbench2_beta_i2v/download_data.sh in the clone"
        )
    return [Problem(i, prompt, prompt, ti2v_eval.meta(image)) for i, (prompt, image) in enumerate(images.items())]


def _task(
    name: str, about: str, rows: Callable[[Path], list[Problem]], samples: int, metrics: Sequence[Metric]
) -> Task:
    return Task(
        name=name,
        version=1,
        about=about,
        rows=rows,
        request=_request,
        score=lambda answers: [_score(answer) for answer in answers],
        budget=ClipBudget(n=samples),
        metrics=lambda budget: metrics,
    )


def _request(problem: Problem) -> ClipPrompt:
    picture = FilePicture(problem.meta["source"])
    return ClipPrompt((picture,), problem.text, problem.meta["motion"], key=gold_text(problem.gold))


def _score(answer: Answer) -> Score:
    [file] = answer.media
    clip = read_video(ROOT / file)[0]
    psnr = ti2v_eval.first_frame(clip, Path(answer.problem.meta["source"]))
    return Score(psnr, {"psnr": psnr, "motion": frames.motion_score(clip)})


MEASURED = (part("psnr", "first frame PSNR"), part("motion", "motion"))


def metrics_by_kind() -> list[Metric]:
    """The figures of all, and the PSNR by domain and by shape: an item's name is <domain>/<shape>/<number>."""
    kinds = {domain: (0, folder) for domain, folder in DOMAINS.items()}
    kinds |= {shape: (1, letter) for letter, shape in SHAPES.items()}
    return [*MEASURED, *(mean(f"first frame PSNR, {kind}", _psnr_of(*where)) for kind, where in kinds.items())]


def _psnr_of(place: int, part_of_name: str) -> Callable[[Question], float | None]:
    def of(question: Question) -> float | None:
        if question[0].gold.split("/")[place] != part_of_name:
            return None
        values = [sample.parts["psnr"] for sample in scored(question)]
        return fmean(values) if values else None

    return of
