"""`stepstack profile WHAT`: times of this device that plans and dispatch read."""

HELP = "measure this device for plans and dispatch; a menu: stepstack profile -h"
