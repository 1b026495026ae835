"""The errors that mean something of their own."""

from __future__ import annotations


class UserError(Exception):
    """Something that the user can mend: the message is one line that says what is wrong and what to do next.

    The command line prints it as it stands and exits with code 2; nothing has been written or overwritten.
    """


class Diverged(Exception):
    """A loss, class score or activation is no longer a finite number."""


def one_line(error: BaseException) -> str:
    """Kind and message of an error, in one line however many it has."""
    return " ".join(f"{type(error).__name__}: {error}".split())
