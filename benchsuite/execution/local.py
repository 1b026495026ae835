"""Runs in processes on this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager, suppress
from multiprocessing import connection, resource_tracker
from threading import Lock, Thread
from types import ModuleType, TracebackType
from typing import Any

from ..method.registered import methods
from ..protocol import protocols
from ..record.schema import Job
from .messages import Ending, Killed, Message
from .worker import RunContext, outcome


class Local:
    """Runs in processes on this machine, `slots` at once; several share one GPU."""

    remark = None

    def __init__(self, slots: int, context: RunContext) -> None:
        self.slots, self.context = slots, context
        # A server that has imported everything forks the processes, which is fast. A process that has used a GPU cannot fork.
        forks = context.device == "cpu" and "forkserver" in multiprocessing.get_all_start_methods()
        self.processing: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
        if forks:
            from multiprocessing import forkserver

            ours = [*protocols.modules(), *methods.modules()]
            self.processing.set_forkserver_preload(["benchsuite.training.runner", "sklearn.datasets", *ours])
            # The server imports from its working folder, where a source tree would shadow the installed package.
            with _deaf(), chdir(os.sep):
                forkserver.ensure_running()
        self.processes: dict[Any, Any] = {}

    def __enter__(self) -> Local:
        return self

    def start(self, job: Job) -> Any:
        reader, writer = self.processing.Pipe(duplex=False)
        process = self.processing.Process(target=_work, args=(writer, dict(os.environ), job, self.context))
        try:
            with _deaf(), _without_main():
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


@contextmanager
def _deaf() -> Iterator[None]:
    """Processes started inside ignore Ctrl-C, which a terminal sends to all of them: only this process handles it."""
    resource_tracker.ensure_running()  # before the mask is set: starting the tracker changes the mask
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


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
