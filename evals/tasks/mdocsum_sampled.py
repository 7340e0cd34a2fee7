"""The same, sampled at temperature 1: the held-out papers of mdocsum-tiny."""

from recipes.mdocsum.config import Config
from recipes.mdocsum.tasks import summaries
from recipes.protocol import load_config

CONFIG = load_config("mdocsum-tiny", kind=Config)
TASK = summaries(CONFIG, "sampled", "the same, sampled at temperature 1", name="mdocsum_sampled")
