"""Settings of generators. No torch.

Each says, beside its numbers, what an evaluation must know of it: ``facts`` (plain JSON that tells how it computes),
``samples_at_once`` (samples that it likes to be given together) and ``needs_weights`` (whether the model must be given
with its weights; otherwise the engine reads them by itself).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import PositiveInt

from stepstack.bounds import Magnitude, Text
from stepstack.config import Strict
from stepstack.generation.vllm.config import VllmConfig, VllmServerConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class HfConfig(Strict):
    """The model itself samples, in the training process: batched, with a KV cache."""

    needs_weights: ClassVar[bool] = True

    type: Literal["hf"] = "hf"
    """Choice of the engine: the model itself, in the training process."""
    batch: PositiveInt = 256
    """Rows that decode together."""
    prefill: PositiveInt = 65536
    """Prompt tokens, padding counted, that are read at a time: their attention takes memory."""
    decoder: Literal["auto", "fused", "module"] = "auto"
    """Code that decodes: fused, our decoder of Qwen2 and Llama; module, any model's own; auto takes fused where it can,
    and logs it."""

    @property
    def samples_at_once(self) -> int:
        return self.batch

    @property
    def facts(self) -> Mapping[str, Any]:
        return {"engine": "hf", "batch": self.batch, "decoder": self.decoder}


@dataclass(frozen=True, kw_only=True, slots=True)
class FileGeneratorConfig(Strict):
    """An engine of your own: a function in a Python file that returns a ``generation.types.Generator``."""

    needs_weights: ClassVar[bool] = True

    type: Literal["file"] = "file"
    """Choice of the engine: one of your own."""
    path: Text
    """Python file, from where the command is typed or from the repository."""
    function: Text = "build"
    """Function of the file, called as ``build(lm, tokenizer, source, device, **options)``."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the function."""
    batch: PositiveInt = 256
    """Samples that an evaluation gives it at a time."""

    @property
    def user_files(self) -> tuple[str, ...]:
        return (self.path,)

    @property
    def samples_at_once(self) -> int:
        return self.batch

    @property
    def facts(self) -> Mapping[str, Any]:
        return {"engine": "file", "function": self.function, "options": self.options}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tool(Strict):
    """A tool that a response may call: the policy writes a query between two marks, reads the answer and goes on."""

    open: Text = "<tool>"
    """Text before a query."""
    close: Text = "</tool>"
    """Text behind a query, which hands it to the tool. Take one that the tokenizer never joins with what follows."""
    result: Text = "<result>{result}</result>"
    """Text that is put behind it, in which {result} stands for the tool's answer ("error" where it has none). It is
    read and never learned."""
    calls: PositiveInt = 8
    """Most calls of a response; one that calls once more ends as cut off."""

    def __post_init__(self) -> None:
        if "{result}" not in self.result:
            raise ValueError("result must hold {result}, in whose place the tool's answer is put: add it")
        if self.open == self.close:
            raise ValueError("open and close are the same text: take two, since a query ends where close comes")


@dataclass(frozen=True, kw_only=True, slots=True)
class CalculatorTool(_Tool):
    """A calculator: numbers, + - * / // % ** and brackets, in a process that is killed where it takes too long."""

    type: Literal["calculator"] = "calculator"
    """Choice of the tool: a calculator."""
    timeout: Magnitude = 1.0
    """Seconds after which a query has failed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileTool(_Tool):
    """A tool of your own: a function in a Python file."""

    type: Literal["file"] = "file"
    """Choice of the tool: one of your own."""
    path: Text
    """Python file, from where the command is typed or from the repository."""
    function: Text = "answer"
    """Its function: ``answer(queries) -> list``, a text for each query, or None where it failed."""

    @property
    def user_files(self) -> tuple[str, ...]:
        return (self.path,)


ToolConfig = CalculatorTool | FileTool


GeneratorConfig = HfConfig | VllmConfig | VllmServerConfig | FileGeneratorConfig
