"""Settings of data that is a task file, and of judges. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, PositiveInt

from stepstack.bounds import Text
from stepstack.config import ConfigError, Strict

MOST_IN_FLIGHT = 1024  # requests to one server at a time
LONGEST_PATIENCE = 86400.0  # seconds

Seconds = Annotated[float, Field(gt=0, le=LONGEST_PATIENCE)]


def server_url(url: str) -> str:
    """The address of a server as it is given. ConfigError for one that is none, or that holds more than scheme, host,
    port and path: user names, passwords and keys would stand in every record."""
    if re.search(r"[@?#]", url):
        raise ConfigError(
            "the server's url holds a user name, a password, a query or a fragment (@, ? or #), which would be "
            "recorded: give scheme, host, port and path alone, and write the API key into a file (--key-file, key_file)"
        )
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port or an address that is none
        whole = False
    if not whole or re.search(r"[\s\x00-\x1f\x7f\\]", url):
        raise ConfigError(f"the server's url {url!r} must be an address such as http://host:8000/v1")
    return url


ServerUrl = Annotated[str, AfterValidator(server_url)]


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

    url: ServerUrl
    """Address of the server, http://host:port; no user name, no query: a key belongs into ``key_file``."""
    model: str | None = None
    """Name of the model there; null: the one that the server lists."""
    model_id: str | None = None
    """Identity of its weights among others of the same name (a commit, a hash, a date); null: what the server lists of
    them."""
    key_file: str | None = None
    """File that holds the API key; null: the server asks for none."""
    concurrency: Annotated[int, Field(ge=1, le=MOST_IN_FLIGHT)] = 32
    """Requests in flight; a server that refuses some as too many gets fewer."""
    patience: Seconds = 60.0
    """Seconds without an answer to any request before it is an error."""
    timeout: Seconds = 600.0
    """Seconds of one answer."""
