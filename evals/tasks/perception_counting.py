"""Number of objects of a kind in a drawn scene: the held-out scenes of perception-tiny-counting."""

from recipes.perception.config import Config
from recipes.perception.tasks import scored
from recipes.protocol import load_config

CONFIG = load_config("perception-tiny-counting", kind=Config)
TASK = scored(CONFIG, "test", "how many of a kind a drawn scene has", name="perception_counting")
