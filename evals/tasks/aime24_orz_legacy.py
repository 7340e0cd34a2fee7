"""AIME 2024 as ORZ's released code grades it."""

from functools import partial

from data.sets.benchmarks import load
from recipes.orz.tasks import benchmark

TASK = benchmark(
    "aime24_orz_legacy", partial(load, "aime24"), "AIME 2024 as ORZ's released code grades it", grader="orz_legacy"
)
