"""Other operands than orz-tiny is trained on: each sum has terms above 9 or passes through totals above 20."""

from data.drawn.chains import Chains, exceeds
from recipes.orz.tasks import held_out, sums

LARGER = Chains(largest_term=19, largest_sum=40)
TASK = sums(
    "orz_tiny_larger",
    lambda: [problem for problem in held_out(LARGER) if exceeds(problem, Chains())],
    "sums with terms up to 19 and totals up to 40; training has 9 and 20",
    max_tokens=96,
)
