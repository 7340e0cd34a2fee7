"""One named object a drawn scene, as a box: the held-out scenes of perception-tiny."""

from recipes.perception.config import Config
from recipes.perception.tasks import scored
from recipes.protocol import load_config

CONFIG = load_config("perception-tiny", kind=Config)
TASK = scored(CONFIG, "test", "one named object a drawn scene, as a box", name="perception_grounding")
