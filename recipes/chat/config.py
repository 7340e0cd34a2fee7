"""Every key of a chat config, on one page. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from data.drawn.dialogues import Dialogues
from data.drawn.splits import SPLITS
from stepstack.batching.config import BatchLayout, ChatConfig
from stepstack.config import Footprint, Needed, RunConfig, Scale, Strict
from stepstack.generation.config import GeneratorConfig, HfConfig
from stepstack.generation.types import Sampling
from stepstack.models.lm.config import Pretrained, TinyQwen2
from stepstack.models.vision.config import PretrainedVl
from stepstack.tuning.config import DpoStage, SftStage, tuning_footprint

CHAT = "make setup EXTRAS=chat"


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyChat(TinyQwen2):
    """A tiny Qwen2 that is made on the spot, with random weights and a chat template in ChatML."""

    type: Literal["tiny"] = "tiny"
    """Choice of the model: a tiny one, made on the spot."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionChat(PretrainedVl):
    """A Qwen2-VL or Qwen2.5-VL by hub name or local path, whose conversations may show pictures."""

    type: Literal["vision"] = "vision"  # type: ignore[assignment]
    """Choice of the model: a published one with eyes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatRows(Strict):
    """Conversations and pairs of answers of your own. Which are held out is decided by a hash of what is asked."""

    type: Literal["rows"] = "rows"
    """Choice of the data: rows of your own."""
    sft: tuple[str, ...] = ()
    """Sources of the stage sft, files of JSON lines, folders of them, or hf:name[@split]: rows of messages, or of
    prompt and completion."""
    dpo: tuple[str, ...] = ()
    """Sources of the stage dpo: rows of prompt, chosen and rejected; the prompt may stand in both answers instead."""
    select: PositiveInt = 64
    """Rows of each stage that are watched during training and never trained on."""
    test: PositiveInt = 64
    """Rows whose questions are answered before and after training, and never trained on."""

    @property
    def reads(self) -> tuple[str, ...]:
        return (*self.sft, *self.dpo)

    @property
    def packages(self) -> tuple[Needed, ...]:
        return (Needed("trl", CHAT),)


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(RunConfig):
    """Config of a chat run: a model, rows, and the stages sft and dpo, one alone or one after the other."""

    model: Annotated[TinyChat | Pretrained | VisionChat, Field(discriminator="type")]
    """Model that the run begins with."""
    data: Annotated[ChatRows | Dialogues, Field(discriminator="type")]
    """Conversations and pairs of answers."""
    chat: ChatConfig = ChatConfig()
    """How they become tokens."""
    sft: SftStage | None = None
    """Supervised fine-tuning on conversations; null: none."""
    dpo: DpoStage | None = None
    """Preference tuning on pairs of answers, of the model that sft made where there is one; null: none."""
    layout: BatchLayout = BatchLayout(pack=True)
    """How rows become micro-batches."""
    answers: Sampling = Sampling(temperature=0.0, max_tokens=256)
    """How held-out questions are answered before and after training."""
    generator: Annotated[GeneratorConfig, Field(discriminator="type")] = HfConfig()
    """Engine that answers them."""

    def __post_init__(self) -> None:
        if self.sft is None and self.dpo is None:
            raise ValueError("nothing to train: give a stage, sft or dpo")
        if isinstance(self.data, ChatRows):
            for name, stage, sources in (("sft", self.sft, self.data.sft), ("dpo", self.dpo, self.data.dpo)):
                if stage is not None and not sources:
                    raise ValueError(f"stage {name} has no rows: name their files in data.{name}, or set {name}=null")
        longest = self.chat.max_tokens * (1 if self.dpo is None else 2)
        if self.layout.max_tokens < longest:
            raise ValueError(
                f"a {'conversation' if self.dpo is None else 'pair'} may have {longest} tokens (chat.max_tokens), "
                f"which layout.max_tokens={self.layout.max_tokens} does not hold: raise it"
            )

    @property
    def task_names(self) -> tuple[str, ...]:
        return SPLITS

    @property
    def scale(self) -> Scale:
        """The model's parameters; the tokens depend on the rows."""
        return Scale(float(self.model.size) if self.model.size is not None else None)

    def footprint(self, shards: int) -> Footprint | None:
        """Weights, gradients and two moments of the larger stage, or weights alone under adapters; and a reference
        model where it stands beside the policy."""
        if self.model.size is None:
            return None
        width = 2 if isinstance(self.model, Pretrained) and self.model.dtype == "bfloat16" else 4
        stages = [stage for stage in (self.sft, self.dpo) if stage is not None]
        return tuning_footprint(width * self.model.size, shards, stages)
