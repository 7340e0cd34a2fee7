"""stepstack: StepFun's published training systems as recipes that run."""

from stepstack.packages import find_in_repository

__version__ = "0.1.0"

find_in_repository()  # here, since every way in (a command, a worker, a user's script) comes by
