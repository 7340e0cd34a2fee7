"""MATH500 as ORZ's released code grades it."""

from functools import partial

from data.sets.benchmarks import load
from recipes.orz.tasks import benchmark

TASK = benchmark(
    "math500_orz_legacy", partial(load, "math500"), "MATH500 as ORZ's released code grades it", grader="orz_legacy"
)
