"""The one exception that tells a user what to mend."""


class UserError(Exception):
    """Bad input from outside: a file, a configuration, a shape.

    The message is one sentence that says what is wrong, where, and how to mend it. The command line prints
    it without a traceback and exits with status 2.
    """
