"""The one error that users see."""


class UserError(Exception):
    """Something that the user can mend: the message is one line that says what is wrong and what to do next.

    The command line prints it as it stands and exits with code 2; nothing has been written or overwritten.
    """
