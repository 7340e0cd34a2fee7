"""DSV in a run of flow matching (docs/dsv.md): on its model, in its checkpoints and behind its updates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from stepstack.config import ConfigError
from stepstack.core import hf
from stepstack.core.run import Run
from stepstack.core.trainable import Trainable
from stepstack.models.video.dsv.config import ContextPlan, DsvConfig
from stepstack.models.video.dsv.diffusers import enable_dsv
from stepstack.models.video.dsv.handle import Dsv, load_speed_profile
from stepstack.parallel.dsv import DsvContext


def check_run(run: Run, config: DsvConfig | None) -> None:
    """Check what only a run knows, before it computes anything. ConfigError where DSV cannot go."""
    if config is None:
        return
    if run.sharded:
        raise ConfigError(
            f"dsv: its hooks were never run on a model that FSDP spreads (launch.file={run.config.launch.file}): take "
            "launch.file=gpu or ddp, or dsv=null"
        )
    load_speed_profile(config)


def enable(run: Run, dit: Trainable, config: DsvConfig | None) -> Dsv | None:
    """DSV on the DiT where the config asks for it, and in the run's checkpoints. After ``run.trainable``, which has
    moved the model and made its optimizer and average: neither is to know of the predictors."""
    if config is None:
        return None
    dsv = enable_dsv(hf.pretrained(dit.unwrapped), config)
    run.keep("dsv", dsv)
    return dsv


def loop_hooks(dsv: Dsv | None, context_plan: ContextPlan | None = None) -> dict[str, Callable[..., Any]]:
    """``after`` and ``share_by`` for ``loops.diffusion.train``, where there is something to do."""
    if dsv is None:
        return {}

    def after() -> Mapping[str, float]:
        dsv.step()
        return dsv.metrics()

    if context_plan is None:
        return {"after": after}
    return {"after": after, "share_by": partial(DsvContext, dsv=dsv, context_plan=context_plan)}
