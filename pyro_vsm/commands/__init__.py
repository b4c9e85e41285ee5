"""One module a command of ``pyro-vsm``: its ``HELP``, its ``arguments(parser)`` and its ``run(args)``.

The first line of ``HELP`` is shown in the list of commands. Heavy imports belong inside the functions.
"""

NAMES = ("train", "evaluate", "compare", "table", "predict", "data", "bench", "export", "plot")
"""The commands, in the order in which they are listed."""
