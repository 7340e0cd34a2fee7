"""`stepstack plan PLANNER`: one file a planner, whose stem is its name.

Each holds ``HELP`` (one line), ``options(parser)``, which adds its arguments, and ``run(args)``, which returns the exit
status. What takes long to import is imported in ``run``: every command line of stepstack passes here.
"""
