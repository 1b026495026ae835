"""Exceptions that callers tell apart: user errors and divergence."""

from __future__ import annotations

from .text import clean


def printable(text: str) -> str:
    """A text that may hold names of files, which need not be UTF-8."""
    return text.encode(errors="backslashreplace").decode()


class UserError(Exception):
    """An error that the user can fix.

    problem: what is wrong, in one line. remedy: what to do next, or None if the problem says it.
    The command line prints "problem; remedy" and exits with code 2; nothing has been written or overwritten.
    """

    def __init__(self, problem: str, remedy: str | None = None) -> None:
        problem, remedy = printable(problem), remedy and printable(remedy)
        super().__init__(problem, remedy)
        self.problem, self.remedy = problem, remedy

    def __str__(self) -> str:
        return f"{self.problem}; {self.remedy}" if self.remedy else self.problem


class Diverged(Exception):
    """A loss, logit or activation is no longer a finite number."""


def one_line(error: BaseException) -> str:
    """Type and message of an error, in one line."""
    return clean(" ".join(f"{type(error).__name__}: {error}".split()))
