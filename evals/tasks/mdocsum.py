"""Four paragraphs of a drawn paper, each with its figure: the held-out papers of mdocsum-tiny."""

from recipes.mdocsum.config import Config
from recipes.mdocsum.tasks import summaries
from recipes.protocol import load_config

CONFIG = load_config("mdocsum-tiny", kind=Config)
TASK = summaries(CONFIG, "test", "four paragraphs of a drawn paper, each with its figure", name="mdocsum")
