"""Measurements of the suite itself, each a script: python -m benchsuite.measure.NAME --help."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import UserError


def script(main: Callable[[], None]) -> None:
    """Run it as a command: what the user can mend is one line, and a non-zero exit code."""
    try:
        main()
    except UserError as error:
        raise SystemExit(f"benchsuite: error: {error}") from None
