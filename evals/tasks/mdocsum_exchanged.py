"""The held-out papers of mdocsum-tiny, their pictures moved on by one place: references must follow."""

from recipes.mdocsum.config import Config
from recipes.mdocsum.tasks import summaries
from recipes.protocol import load_config

CONFIG = load_config("mdocsum-tiny", kind=Config)
TASK = summaries(
    CONFIG,
    "exchanged",
    "the same papers, their pictures moved on by one place: references must follow",
    name="mdocsum_exchanged",
)
