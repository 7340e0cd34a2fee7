"""`stepstack sim SIMULATION`: what plans come to."""

HELP = "what plans come to: time, money, waste; a menu: stepstack sim -h"
