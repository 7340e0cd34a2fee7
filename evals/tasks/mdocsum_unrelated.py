"""The held-out papers of mdocsum-tiny with pictures that are not theirs: references must fall to chance."""

from recipes.mdocsum.config import Config
from recipes.mdocsum.tasks import summaries
from recipes.protocol import load_config

CONFIG = load_config("mdocsum-tiny", kind=Config)
TASK = summaries(
    CONFIG,
    "unrelated",
    "the same papers with pictures that are not theirs: references must fall to chance",
    name="mdocsum_unrelated",
)
