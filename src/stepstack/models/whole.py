"""Loading of a model with all its weights, whichever library made it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stepstack.config import ConfigError


def load_whole(cls: Any, path: str | Path, *, part: bool = False, **how: Any) -> Any:
    """Model of ``cls.from_pretrained``, transformers' or diffusers', with all its weights from the folder or hub name.

    ConfigError where it lacks some or has them in another shape, which would be drawn at random, and where it holds
    others, which would be left out; ``part``: a part of what is saved there is wanted, such as a body without its head.
    """
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
