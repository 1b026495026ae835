"""The command line: parse, call, print. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any, NoReturn

from ..errors import UserError
from ..text import clean
from .arguments import parser

# The module of each command, imported when the command is called: `--help` imports none.
COMMANDS = {
    **dict.fromkeys(("run", "leaderboard", "status", "tune"), "runs"),
    **dict.fromkeys(("report", "table", "export", "verify", "import", "merge"), "results"),
    **dict.fromkeys(("list", "new-method", "new-protocol", "check"), "methods"),
    **dict.fromkeys(("data", "bench"), "machine"),
}


PATIENCE = 5.0  # seconds


def program() -> NoReturn:
    """`main` as a program: it ends even if a method or a plugin has left a thread running."""
    code = main()
    end = time.monotonic() + PATIENCE
    left = [thread for thread in threading.enumerate() if not thread.daemon and thread is not threading.main_thread()]
    for thread in left:
        thread.join(max(end - time.monotonic(), 0))
    if running := [clean(thread.name) for thread in left if thread.is_alive()]:
        print(f"benchsuite: note: still running and stopped now: {', '.join(running)}; make it a daemon thread", file=sys.stderr)
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(code)
    raise SystemExit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, 1 for a run that failed, 2 for an error that the user can fix, 130 or 143 after a signal."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # it was closed: the next file that is opened would get what libraries print
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):  # the name of a file need not be text that can be encoded
            with suppress(OSError):  # what it writes to was exchanged, and cannot tell its position
                stream.reconfigure(errors="backslashreplace")
    end = None
    try:
        code = _command(argv)
    except SystemExit as error:  # wrong options, or --help
        code, end = 2, error
    try:
        sys.stdout.flush()  # now: when Python ends, nobody could say in one line that it failed
    except BrokenPipeError:  # the output was piped into a process that has ended
        code, end = 128 + signal.SIGPIPE, None
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    except OSError as error:
        print(f"benchsuite: error: cannot write to standard output: {error.strerror}", file=sys.stderr)
        code, end = 2, None
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if end:
        raise end
    return code


def _command(argv: Sequence[str] | None) -> int:
    """Parse and call, and say in one line what went wrong."""
    top = parser()
    arguments = top.parse_args(argv)
    if arguments.version:
        from importlib.metadata import version

        print(f"benchsuite {version('benchsuite')}")
        return 0
    if arguments.command is None:
        top.print_help()
        return 2
    # SIGTERM ends a command as Ctrl-C does, worker processes included.
    here = threading.current_thread() is threading.main_thread()  # only the main thread may set a signal handler
    before = signal.signal(signal.SIGTERM, interrupt) if here else None
    try:
        if (results := getattr(arguments, "results", None)) and results.exists() and not results.is_dir():
            raise UserError(f"{results}: is not a folder", "name one with --results")
        if named := getattr(arguments, "protocol", None):  # a name or a file; several, for `report`
            from ..protocol import protocols

            several = isinstance(named, list)
            arguments.protocol = [protocols.find(name) for name in named] if several else protocols.find(named)
        module = import_module(f".{COMMANDS[arguments.command]}", __package__)
        return int(getattr(module, f"command_{arguments.command.replace('-', '_')}")(arguments) or 0)
    except UserError as error:
        print(f"benchsuite: error: {clean(str(error))}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # as above
        return 128 + signal.SIGPIPE
    except OSError as error:  # a path that is too long or not permitted, whichever option it came from
        if error.strerror is None:
            raise
        what = f"{clean(os.fsdecode(error.filename)):.200}: {error.strerror}" if isinstance(error.filename, str | bytes) else ""
        what = f"{what}; check its name and your permissions" if what else f"cannot read or write: {error.strerror}"
        print(f"benchsuite: error: {what}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        kept = arguments.command in ("run", "leaderboard", "tune", "verify")
        print(f"benchsuite: interrupted{'; finished tasks are kept, the same command resumes' if kept else ''}", file=sys.stderr)
        return 128 + (error.args[0] if error.args else signal.SIGINT)
    finally:
        if here:
            signal.signal(signal.SIGTERM, before)


def interrupt(number: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt(number)
