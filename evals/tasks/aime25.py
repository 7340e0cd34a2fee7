"""AIME 2025, 30 questions."""

from functools import partial

from data.sets.benchmarks import load
from recipes.orz.tasks import benchmark

TASK = benchmark("aime25", partial(load, "aime25"), "AIME 2025, 30 questions")
