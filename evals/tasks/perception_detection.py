"""All objects of a drawn scene, named, as boxes: the held-out scenes of perception-tiny-detection."""

from recipes.perception.config import Config
from recipes.perception.tasks import scored
from recipes.protocol import load_config

TASK = scored(
    load_config("perception-tiny-detection", kind=Config),
    "test",
    "all objects of a drawn scene, named, as boxes",
    name="perception_detection",
)
