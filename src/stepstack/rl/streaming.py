"""Rollouts of a run by worker processes: what all training processes do of it, and what its checkpoints hold."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from stepstack.config import RunConfig, digest, to_dict
from stepstack.core.folder import CHANGEABLE_KEYS
from stepstack.core.preflight import fingerprint
from stepstack.core.run import Run
from stepstack.generation.build import units_of
from stepstack.generation.service.config import (
    FOLDER,
    TIMELINE,
    RankedLength,
    RankedLongest,
    StreamConfig,
    StreamDispatch,
)
from stepstack.generation.service.dispatch import Rank
from stepstack.generation.service.local import LocalWorkers
from stepstack.generation.service.trainer import RolloutServer
from stepstack.generation.types import EngineError, Group, Prompt, Sampling, rollout_seed
from stepstack.models.lm import pretrained
from stepstack.models.lm.config import Pretrained
from stepstack.report import jsonl
from stepstack.rl.config import PpoConfig
from stepstack.rl.prompts import PromptStream
from stepstack.rl.ranker import LengthRanker


def identity(cfg: RunConfig) -> dict[str, str]:
    """Digests of all that a worker must have as its trainer has it; not where and how a run is carried out."""
    prints = fingerprint(cfg)
    config = digest(cfg, ignore=(*CHANGEABLE_KEYS, "stream"))
    return {"config": config, "code": prints["code"], "data": prints["data"]}


def rank_of(dispatch: StreamDispatch, source: str) -> Rank | None:
    """Estimates by the ranker that a dispatch names, on the model in ``source``; None where it names none."""
    if not isinstance(dispatch, RankedLength | RankedLongest) or dispatch.ranker is None:
        return None
    ranker = LengthRanker.load(Path(dispatch.ranker), pretrained.load(Pretrained(path=source)))
    return lambda prompts: ranker.estimate([prompt.ids for prompt in prompts])


def portion(ended: int, left: int, least: int) -> int:
    """Number of the ``ended`` groups to take, of ``left`` that are not taken yet: as many as leave none, or ``least``
    and more."""
    return ended if ended == left else min(ended, left - least)


class StreamedRollouts:
    """The verbs of loops/stream.py. Process 0 has the server; the others take part in what all must do.

    A checkpoint holds the groups that had ended and were not trained, and the weights by which the others of their step
    are sampled: none is sampled twice, none is skipped."""

    def __init__(self, run: Run[Any], cfg: PpoConfig, stream: StreamConfig, prompts: PromptStream, source: str):
        """``source``: folder of the model that the run begins with."""
        self.run, self.cfg, self.stream, self.prompts = run, cfg, stream, prompts
        self.server: RolloutServer | None = None
        self._cuts: dict[int, int] = {}  # units of each step that is held
        self._published: Future[float] | None = None
        self._publisher = ThreadPoolExecutor(1, thread_name_prefix="publisher")
        if run.is_main:
            folder = run.dir / FOLDER
            local = None
            if stream.workers:
                words = [str(_config_file(cfg, folder))]
                local = LocalWorkers(stream.workers, words, folder / "logs", stream.restarts, stream.pin)
            here = Path(source) if Path(source).is_dir() else None
            self.server = RolloutServer(stream, folder, identity(cfg), here, local, rank_of(stream.dispatch, source))
        run.keep(FOLDER, self)

    # -- the verbs -------------------------------------------------------------------------------------------------

    def publish(self, step: int, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Hand the weights at the beginning of a step to the workers, and admit the work that they are for. At
        staleness 0 this returns when they are ready, else it is done while training goes on."""
        here = {}
        for name, value in weights:  # every process takes part, the first one keeps them
            if self.server is not None:
                here[name] = value.detach().to("cpu", copy=True)
        admitted = {at: self._parts(at) for at in range(step, min(step + self.stream.staleness + 1, self.cfg.steps))}
        self._cuts |= {at: len(units) for at, units in admitted.items()}
        if self.server is None:
            return
        self._await_published()
        self._published = self._publisher.submit(self._publish, step, here, admitted)
        if self.stream.staleness == 0 or step == self.run.resumed_from or step == 0:
            self._await_published()

    def _publish(self, step: int, weights: dict[str, Tensor], admitted: dict[int, list[list[Prompt]]]) -> float:
        assert self.server is not None
        started = time.perf_counter()
        self.server.publish(weights, step)
        for at, units in admitted.items():
            self.server.admit(at, self.version(at), units, self._sampling(at))
        return time.perf_counter() - started

    def _await_published(self) -> None:
        if self._published is not None:
            self.run.log(**{"stream/publish_s": self._published.result()})
            self._published = None

    def version(self, step: int) -> int:
        """Version of the policy that samples a step."""
        return max(0, step - self.stream.staleness)

    def units(self, step: int) -> Iterator[list[Group]]:
        """This process's groups of each unit of a step, in order, once the unit is there. EngineError, on every
        process, where one cannot be made or comes from another version than it should."""
        for number in range(self._cuts[step]):
            groups = self._taken(step, partial(RolloutServer.unit, step=step, number=number))
            yield groups[self.run.rank :: self.run.processes]

    def groups(self, step: int) -> Iterator[list[Group]]:
        """This process's part of the groups of a step as they end, whichever units they are of; all processes get some
        rows of each portion. EngineError as ``units``."""
        rollout, known = self.cfg.rollout, set[int]()
        least = -(-self.run.processes // rollout.sampling.n)
        while left := rollout.prompts - len(known):
            wanted = left if left < 2 * least else least
            groups = self._taken(step, partial(RolloutServer.ended, step=step, known=set(known), least=wanted))
            groups = groups[: portion(len(groups), left, least)]
            known |= {group.prompt.problem.index for group in groups}
            yield groups[self.run.rank :: self.run.processes]

    def _taken(self, step: int, take: Callable[[RolloutServer], list[Group]]) -> list[Group]:
        """Groups that process 0 takes from the server, on every process."""
        groups: list[Group] = []
        why = ""
        if self.server is not None:
            try:
                groups = take(self.server)
            except EngineError as error:
                why = str(error)
        groups, why = self.run.gather([(groups, why)])[0]  # a failure of process 0 must not leave the others waiting
        if why:
            raise EngineError(why)
        for rollout in (rollout for group in groups for rollout in group.rollouts):
            if rollout.version != self.version(step):
                raise EngineError(
                    f"step {step} needs rollouts of version {self.version(step)}, problem {rollout.problem.index} "
                    f"came from {rollout.version}"
                )
        return groups

    def trained(self, step: int) -> None:
        """Forget a step, whose groups were trained."""
        del self._cuts[step]
        if self.server is not None:
            self.server.trained(step)
            self.run.log(**self.server.figures(), **{"stream/lag": float(step - self.version(step))})

    def record(self, what: str, step: int, began: float) -> None:
        """A line of the timeline: what the trainer did since ``began``, seconds of the day."""
        if self.server is not None:
            row = {"who": "trainer", "what": what, "step": step, "began": began, "ended": time.time()}
            jsonl.append(self.server.folder / TIMELINE, row)

    def __enter__(self) -> StreamedRollouts:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """Let go of the workers: they end where training did, else they wait for it to go on."""
        self._publisher.shutdown()
        if self.server is not None:
            self.server.close(over=kind is None)

    def _parts(self, step: int) -> list[list[Prompt]]:
        rollout = self.cfg.rollout
        return units_of(self.prompts.take(step, rollout.prompts), rollout.sampling, rollout.generator)

    def _sampling(self, step: int) -> Sampling:
        return self.cfg.rollout.sampling.replace(seed=rollout_seed(self.cfg.seed, step, 0))

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        assert self.server is not None
        self._await_published()
        state = self.server.state()
        older = [version for version in state["unfinished"] if version in self.server.weights.digests]
        return state | {"weights": {str(version): self.server.weights.load(version) for version in older}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.server is not None:
            for version, weights in state["weights"].items():
                self.server.publish(weights, int(version))
            self.server.restore(state)


def _config_file(cfg: PpoConfig, folder: Path) -> Path:
    """The run's config as a file, for worker processes: they may be started from any folder, with any overrides."""
    folder.mkdir(parents=True, exist_ok=True)
    values = to_dict(replace(cfg, dir=str(cfg.folder.parent)))
    file = folder / "worker.yaml"
    jsonl.write_text_atomic(file, yaml.safe_dump(values, sort_keys=False))
    return file
