"""The process that imports everything once and then forks the processes that train, which is fast.

It imports PyTorch, and this module does not: a command starts the server first and imports PyTorch meanwhile.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from multiprocessing import resource_tracker

WANTED = ("benchsuite.execution.wanted", "sklearn.datasets")


def can_fork(device: str) -> bool:
    """Whether processes for this device can be forked. One that has used a GPU cannot."""
    if device == "auto" and os.path.exists("/dev/nvidiactl"):  # it will probably be a GPU
        return False
    return device in ("cpu", "auto") and "forkserver" in multiprocessing.get_all_start_methods()


def start() -> None:
    """Start the server, unless it runs already."""
    from multiprocessing import forkserver

    multiprocessing.get_context("forkserver").set_forkserver_preload([*WANTED])
    # The server imports from its working folder, where a source tree would shadow the installed package.
    with deaf(), chdir(os.sep):
        forkserver.ensure_running()


@contextmanager
def deaf() -> Iterator[None]:
    """Processes started inside ignore Ctrl-C, which a terminal sends to all of them: only this process handles it."""
    resource_tracker.ensure_running()  # before the mask is set: starting the tracker changes the mask
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
