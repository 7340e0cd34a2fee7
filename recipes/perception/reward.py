"""Rewards and figures of the four tasks: the parts of ``scoring.vision.perception``, weighted, over rollouts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from unicodedata import normalize

from data.media.images import Record
from recipes.perception.config import BoxFileReward, Config, RewardConfig, weights_of
from stepstack.generation.types import Answer
from stepstack.harness.config import TaskData
from stepstack.harness.training.task_data import load_task
from stepstack.records import Problem, Score
from stepstack.rl.reward import Reward, load_reward
from stepstack.scoring.text import similarity
from stepstack.scoring.vision import answers, perception
from stepstack.scoring.vision.answers import Form
from stepstack.scoring.vision.detection import GoldBox, Labelled, box_figures, count_figures
from stepstack.scoring.vision.perception import Frame
from stepstack.scoring.vision.spatial import Box, Point, Space


@dataclass(frozen=True, slots=True)
class Gold:
    """Objects, text or count that an answer is compared with, in pixels of the picture as it lies in the data.

    ``annotated``: all boxes in the order of the data, crowd regions too, for the average precision. ``boxes`` are those
    to find.
    """

    task: str
    size: tuple[int, int]
    model_size: tuple[int, int]
    annotated: tuple[GoldBox, ...] = ()
    points: tuple[Point, ...] = ()
    text: str = ""
    count: int = 0

    @classmethod
    def read(cls, gold: str) -> Gold:
        row = json.loads(gold)
        return cls(
            row["task"],
            tuple(row["size"]),
            tuple(row["model_size"]),
            tuple(GoldBox(tuple(box), *rest) for box, *rest in row.get("boxes", [])),
            tuple(tuple(point) for point in row.get("points", [])),
            row.get("text", ""),
            row.get("count", 0),
        )

    def write(self) -> str:
        """The gold as JSON, which ``read`` reads.

        An entry of ``boxes`` is [box, label], and [box, label, area, crowd] where it has an area or is a crowd.
        """
        row: dict = {"task": self.task, "size": self.size, "model_size": self.model_size}
        if self.task == "ocr":
            row["text"] = self.text
        else:
            boxes = [one if one.crowd or one.area is not None else one[:2] for one in self.annotated]
            row |= {"boxes": boxes, "points": self.points}
        if self.task == "counting":
            row["count"] = self.count
        return json.dumps(row)

    def frame(self, space: Space) -> Frame:
        return Frame(space, self.size, self.model_size)

    @property
    def boxes(self) -> tuple[Labelled, ...]:
        """Boxes of the objects, without the crowds."""
        return tuple((one.box, one.label) for one in self.annotated if not one.crowd)

    @property
    def crowds(self) -> tuple[Labelled, ...]:
        return tuple((one.box, one.label) for one in self.annotated if one.crowd)

    @property
    def targets(self) -> list[Box | Point]:
        return [box for box, _ in self.boxes] or list(self.points)


def gold_of(record: Record, model_size: tuple[int, int]) -> Gold:
    """The gold of a record, in pixels."""
    frame = Frame(record.space, record.size)
    if record.task == "ocr":
        return Gold(record.task, record.size, model_size, text=record.text)
    boxes = tuple(GoldBox(frame.pixels(t.box), t.label, t.area, t.crowd) for t in record.targets if t.box is not None)
    points = tuple(frame.pixels_of_point(t.point) for t in record.targets if t.point is not None)
    count = 0
    if record.task == "counting":
        count = len(record.objects) if record.count is None else record.count
    return Gold(record.task, record.size, model_size, boxes, points, count=count)


def gold_in(problem: Problem) -> Gold:
    """The gold of a perception problem."""
    assert isinstance(problem.gold, Gold)
    return problem.gold


def parts_of(answer: str, gold: Gold, cfg: RewardConfig, *, finished: bool, thinking: bool) -> dict[str, float]:
    """The parts of one answer's reward. It is that of the objects alone: a box in a crowd region, unless it is matched
    with an object, has neither reward nor penalty."""
    frame, form = gold.frame(cfg.space), cfg.form
    match gold.task:
        case "grounding":
            target = gold.boxes[0][0]
            return perception.grounding(
                answer, target, frame, finished=finished, form=form, squared=cfg.squared, thinking=thinking
            )
        case "counting":
            return perception.counting(
                answer, gold.targets, frame, finished=finished, form=form, matching=cfg.matching, thinking=thinking
            )
        case "ocr":
            return perception.ocr(answer, gold.text, finished=finished, thinking=thinking)
        case _:
            return perception.detection(
                answer,
                gold.boxes,
                frame,
                finished=finished,
                form=form,
                matching=cfg.matching,
                over=cfg.over,
                thinking=thinking,
                crowds=gold.crowds,
            )


def reward_of(cfg: Config) -> Reward:
    """The reward of a run: that of the file which the config names, else that of the task file whose rows are
    trained on, else the weighted sum of the parts."""
    if isinstance(cfg.reward, BoxFileReward):
        return load_reward(cfg.reward)
    if isinstance(cfg.data, TaskData):
        return load_task(cfg.data).score
    return make_reward(cfg, cfg.reward)


def make_reward(cfg: Config, rule: RewardConfig) -> Reward:
    """The weighted sum of the parts."""
    weights = weights_of(cfg.task, rule)

    def reward(rollouts: Sequence[Answer]) -> list[Score]:
        scores = []
        for rollout in rollouts:
            gold = gold_in(rollout.problem)
            finished = rollout.finish == "stop"
            parts = parts_of(rollout.text, gold, rule, finished=finished, thinking=cfg.prompt.thinking)
            scores.append(Score(perception.total(parts, weights), parts))
        return scores

    return reward


def figures_of(answer: str, gold: Gold, form: Form, space: Space) -> tuple[float, Mapping[str, float]]:
    """(the figure that tables show first, all figures) of one answer: the published metrics of its task."""
    frame = gold.frame(space)
    answer, well = (answer, True) if gold.task == "ocr" else answers.mended(answer, form)
    formed = {"well_formed": float(well)}
    match gold.task:
        case "grounding":
            figures = box_figures(perception.grounding_box(answer, frame, form), gold.boxes[0][0])
            return figures["acc50"], figures | formed
        case "counting":
            figures = count_figures(len(answers.boxes(answer, form)[0]), gold.count)
            return figures["exact"], figures | formed
        case "ocr":
            read, truth = (normalize("NFC", text).strip() for text in (answers.strip_end_token(answer), gold.text))
            predicted, true = similarity.words(read), similarity.words(truth)
            figures = {
                "edit": similarity.normalised_edit_distance(read, truth),
                **similarity.word_overlap(predicted, true),
                "bleu": similarity.bleu(predicted, true),
                "meteor": similarity.meteor(predicted, true),
            }
            return 1 - figures["edit"], figures
        case _:
            parts = perception.detection(answer, gold.boxes, frame, finished=True, form=form, crowds=gold.crowds)
            return parts["count_f1"], parts | formed


def make_metric(cfg: Config) -> Reward:
    """The published metrics, for evaluation, or a task file's own score; ``thinking`` answers are unwrapped first."""
    if isinstance(cfg.data, TaskData):
        return load_task(cfg.data).score

    def judge(rollouts: Sequence[Answer]) -> list[Score]:
        scores = []
        for rollout in rollouts:
            gold = gold_in(rollout.problem)
            answer = answers.unwrap(rollout.text)[0] if cfg.prompt.thinking else rollout.text
            value, figures = figures_of(answer, gold, cfg.reward.form, cfg.reward.space)
            scores.append(Score(value, figures, answer))
        return scores

    return judge
