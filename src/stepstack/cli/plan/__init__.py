"""`stepstack plan PLANNER`: decisions about machines."""

HELP = "decide what machines do, without a machine; a menu: stepstack plan -h"
