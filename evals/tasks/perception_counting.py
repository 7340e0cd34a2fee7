"""How many of a kind a drawn scene has: the held-out scenes of perception-tiny-counting."""

from recipes.perception.tasks import scored
from stepstack import config

TASK = scored(
    config.load("perception-tiny-counting"), "test", "how many of a kind a drawn scene has", name="perception_counting"
)
