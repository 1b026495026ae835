"""Processes for tests, without their imports."""

import os
import signal
import sys
import traceback
import warnings
from itertools import pairwise
from multiprocessing import forkserver, resource_tracker


def forked(act, keep=()):
    """The id of a process that calls `act()`: a fork of this one that has forgotten the project's modules, with the files `keep`
    open and no others. A new process would import PyTorch again, which takes seconds."""
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # newer Pythons: of forks beside threads
        child = os.fork()
    if child:
        return child
    code = 1
    try:
        kept = sorted({0, 1, 2, *keep})
        for last, following in pairwise([*kept, os.sysconf("SC_OPEN_MAX")]):
            os.closerange(last + 1, following)
        for each in (forkserver._forkserver, resource_tracker._resource_tracker):
            each.__init__()  # those that it knew are its parent's
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)  # not pytest's
        warnings.simplefilter("ignore")
        for name in [name for name in sys.modules if name.partition(".")[0] == "benchsuite"]:
            del sys.modules[name]
        act()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
