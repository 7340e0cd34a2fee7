"""One named object a drawn scene, as a box: the held-out scenes of perception-tiny."""

from recipes.perception.tasks import scored
from stepstack import config

TASK = scored(
    config.load("perception-tiny"), "test", "one named object a drawn scene, as a box", name="perception_grounding"
)
