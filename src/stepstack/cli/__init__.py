"""The command line: a command is a file here, or a folder of them, and its stem is its name.

Each file holds ``HELP`` (one line), ``options(parser)``, which adds its arguments, and ``run(args)``, which returns the
exit status. What takes long to import is imported in ``run``: every command line passes through all of these files.
"""
