"""What a step samples, and with which engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from stepstack.config import Strict
from stepstack.rl.generate import HfConfig
from stepstack.rl.types import Sampling
from stepstack.rl.vllm import VllmConfig, VllmServerConfig

GeneratorConfig = HfConfig | VllmConfig | VllmServerConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutConfig(Strict):
    """A step samples ``prompts`` x ``sampling.n`` rollouts over all processes."""

    prompts: int = 128
    sampling: Sampling = Sampling(n=64)
    generator: Annotated[GeneratorConfig, Field(discriminator="type")] = HfConfig()
