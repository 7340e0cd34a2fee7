"""orz-tiny's held-out sums: 5 to 7 terms, as trained on."""

from data.drawn.chains import Chains
from recipes.orz.tasks import held_out, sums

TASK = sums("orz_tiny", lambda: held_out(Chains()), "sums of 5-7 terms that no stage of training can see")
