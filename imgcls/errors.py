"""The one exception for what a user can mend; everything else is a bug and keeps its traceback."""


class UserError(ValueError):
    """A mistake in a recipe, a path, the data or the surroundings.

    The message says what was found, what was expected and what to do. The command line prints it on
    stderr and exits with code 2.
    """
