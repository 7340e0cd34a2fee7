"""Longer sums than orz-tiny is trained on: 8 to 10 terms."""

from data.drawn.chains import Chains
from recipes.orz.tasks import held_out, sums

LONGER = Chains(terms=(8, 10))
TASK = sums("orz_tiny_longer", lambda: held_out(LONGER), "sums of 8-10 terms; training has 5-7", max_tokens=96)
