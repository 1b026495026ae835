"""The errors that mean something of their own."""


class UserError(Exception):
    """Something that the user can mend: the message is one line that says what is wrong and what to do next.

    The command line prints it as it stands and exits with code 2; nothing has been written or overwritten.
    """


class Diverged(Exception):
    """A loss, class score or activation is no longer a finite number."""
