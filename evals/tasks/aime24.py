"""AIME 2024, 30 questions."""

from functools import partial

from data.sets.benchmarks import load
from recipes.orz.tasks import benchmark

TASK = benchmark("aime24", partial(load, "aime24"), "AIME 2024, 30 questions")
