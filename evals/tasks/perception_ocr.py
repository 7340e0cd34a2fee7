"""A drawn word, read: the held-out scenes of perception-tiny-ocr."""

from recipes.perception.tasks import scored
from stepstack import config

TASK = scored(config.load("perception-tiny-ocr"), "test", "a drawn word, read", name="perception_ocr")
