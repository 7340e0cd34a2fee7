"""GPQA-Diamond, 198 questions with four choices."""

from functools import partial

from data.sets.benchmarks import load
from recipes.orz.tasks import benchmark

TASK = benchmark("gpqa_diamond", partial(load, "gpqa_diamond"), "GPQA-Diamond, 198 questions with four choices")
