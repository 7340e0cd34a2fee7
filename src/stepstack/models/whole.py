"""Loading of a model with all its weights, whichever library made it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError

from stepstack.config import ConfigError


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Block that reads a model's files. ConfigError that names ``path`` where it is neither a folder that holds them
    nor a name on the hub that can be had from here: the libraries' own errors name neither it nor what to do."""
    try:
        yield
    except (OSError, HFValidationError) as error:
        raise ConfigError(
            f"{path} cannot be read as a model ({str(error).strip().splitlines()[0]}): give the whole path of a folder "
            "that save_pretrained wrote (~ is not expanded), or the name of a model on the hub that this machine can "
            "reach or has downloaded"
        ) from None


def load_whole(cls: Any, path: str | Path, *, part: bool = False, **how: Any) -> Any:
    """Model of ``cls.from_pretrained``, transformers' or diffusers', with all its weights from the folder or hub name.

    ConfigError where there is none, where it lacks some or has them in another shape, which would be drawn at random,
    and where it holds others, which would be left out;
    ``part``: a part of what is saved there is wanted, such as a body without its head.
    """
    with reading(path):
        model, info = cls.from_pretrained(path, output_loading_info=True, **how)
    lacking = sorted({*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])})
    if lacking:
        raise ConfigError(
            f"{path} lacks {len(lacking)} of the model's weights, or has them in another shape: "
            f"{', '.join(lacking[:5])}: give a folder that was saved whole"
        )
    if (more := sorted(info["unexpected_keys"])) and not part:
        raise ConfigError(
            f"{path} holds {len(more)} weights that a {type(model).__name__} has not: {', '.join(more[:5])}: its "
            "config.json is another model's, or the names were changed (as by DDP's module.): give the folder as "
            "save_pretrained wrote it"
        )
    return model
