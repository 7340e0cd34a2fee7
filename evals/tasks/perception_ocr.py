"""Reading of a drawn word: the held-out scenes of perception-tiny-ocr."""

from recipes.perception.config import Config
from recipes.perception.tasks import scored
from recipes.protocol import load_config

TASK = scored(load_config("perception-tiny-ocr", kind=Config), "test", "a drawn word, read", name="perception_ocr")
