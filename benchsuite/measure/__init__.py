"""Measurements of the suite itself, each a script: python -m benchsuite.measure.NAME --help."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import UserError


def script(main: Callable[[], None]) -> None:
    """Run `main` as a command: a UserError is printed in one line, and the exit code is not zero."""
    try:
        main()
    except UserError as error:
        raise SystemExit(f"benchsuite: error: {error}") from None
