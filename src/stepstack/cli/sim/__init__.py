"""`stepstack sim SIMULATION`: what plans come to."""

HELP = "simulate plans: time, money, waste; a menu: stepstack sim -h"
