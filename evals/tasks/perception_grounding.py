"""One named object a drawn scene, as a box: the held-out scenes of perception-tiny."""

from recipes.perception.tasks import scored
from recipes.protocol import load_config

TASK = scored(
    load_config("perception-tiny"), "test", "one named object a drawn scene, as a box", name="perception_grounding"
)
