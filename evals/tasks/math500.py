"""MATH500, 500 questions."""

from functools import partial

from data.sets.benchmarks import load
from recipes.orz.tasks import benchmark

TASK = benchmark("math500", partial(load, "math500"), "MATH500, 500 questions")
