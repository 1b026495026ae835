"""Runs in processes on this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import connection
from threading import Lock, Thread
from types import ModuleType, TracebackType
from typing import Any

from ..record.schema import Job
from . import server
from .messages import Ending, Killed, Message
from .worker import RunContext, outcome


class Local:
    """Runs in processes on this machine, `slots` at once; several share one GPU."""

    remark = None

    def __init__(self, slots: int, context: RunContext) -> None:
        self.slots, self.context = slots, context
        forks = server.can_fork(context.device)
        if forks:
            server.start()
        self.processing: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
        self.processes: dict[Any, Any] = {}

    def __enter__(self) -> Local:
        return self

    def start(self, job: Job) -> Any:
        reader, writer = self.processing.Pipe(duplex=False)
        process = self.processing.Process(target=_work, args=(writer, dict(os.environ), job, self.context))
        try:
            with server.deaf(), _without_main():
                process.start()
                self.processes[reader] = process
        finally:
            writer.close()  # the process has its own copy: when the process ends, so does the pipe
        return reader

    def messages(self, keys: Sequence[Any]) -> Iterator[tuple[Any, Message]]:
        for reader in connection.wait(keys):
            assert isinstance(reader, connection.Connection)
            try:
                message: Message = reader.recv()
            except (EOFError, OSError):  # OSError: killed in the middle of a message
                message = Killed()
            if isinstance(message, Ending):
                self._bury(reader)
            yield reader, message

    def _bury(self, reader: Any) -> None:
        reader.close()
        process = self.processes.pop(reader)
        process.join(10)  # it may still be writing
        if process.is_alive():
            process.kill()
            process.join()
        process.close()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        for process in self.processes.values():
            process.terminate()
        for reader in list(self.processes):
            self._bury(reader)


MAIN = Lock()


@contextmanager
def _without_main() -> Iterator[None]:
    """Processes started inside do not import the user's script, so it needs no `if __name__ == "__main__":`."""
    with MAIN:
        main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


def _work(pipe: Any, environment: dict[str, str], job: Job, context: RunContext) -> None:
    """One run, in a process of its own."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    Thread(target=_follow_parent, daemon=True).start()
    os.environ.clear()  # the server may have been started with another environment
    os.environ.update(environment)

    def tell(message: Message) -> None:
        with suppress(OSError):  # the parent no longer listens, which is no reason for a run to fail
            pipe.send(message)

    tell(outcome(job, context, tell))


def _follow_parent() -> None:
    """Exit when the parent has ended, however it was killed; finished tasks are in the checkpoint."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
