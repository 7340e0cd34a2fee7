"""Settings of data that is a task file, and of judges. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import PositiveInt

from stepstack.bounds import Text
from stepstack.config import Strict


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskData(Strict):
    """Rows of a task file, the same that ``stepstack eval --tasks mine.py`` evaluates. Which rows are held out is
    decided by a hash of their text. The task's score is the reward, unless ``reward`` names a file."""

    type: Literal["task"] = "task"
    """Choice of the data: a task file."""
    path: Text
    """Python file that defines ``TASK = Task(...)``, from where the command is typed or from the repository."""
    select: PositiveInt = 64
    """Rows that are watched during training and never trained on."""
    test: PositiveInt = 256
    """Rows that are reported at the end and never trained on."""

    @property
    def user_files(self) -> tuple[str, ...]:
        return (self.path,)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedJudge(Strict):
    """A model on an OpenAI-compatible server that judges answers."""

    url: Text
    """Address of the server, http://host:port."""
    model: str | None = None
    """Name of the model there; null: the one that the server lists."""
    key_file: str | None = None
    """File that holds the API key; null: the server asks for none."""
    concurrency: PositiveInt = 32
    """Requests in flight."""
