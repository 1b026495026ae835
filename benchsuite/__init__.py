"""benchsuite: continual learning inside a storage budget, measured on equal terms."""

import os
import sys
import warnings
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

# PyTorch's profiler, which counts allocations, otherwise prints when it starts and stops, and blocks that are new to it.
os.environ.setdefault("KINETO_LOG_LEVEL", "6")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
warnings.filterwarnings("ignore", message="no QP solver found")  # Avalanche looks for a solver that only GEM needs


def _can_be_made(folder: str) -> bool:
    """Whether a folder is there, or can be made, and can be written."""
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)


# Avalanche makes ~/.avalanche when it is imported. Where nobody can, this stands in for the module that does so, which says where
# Avalanche's own image sets lie: nothing here uses them.
_home = os.path.abspath(os.path.expanduser("~/.avalanche"))
if not os.path.isfile(f"{_home}/config.json") and not _can_be_made(_home):
    _datasets: Any = ModuleType("avalanche.benchmarks.datasets.dataset_utils")
    _datasets.default_dataset_location = lambda name: import_module("pathlib").Path(_home, "data", name)
    sys.modules.setdefault(_datasets.__name__, _datasets)

# Where matplotlib cannot keep its list of fonts, it makes a folder that lasts as long as the process, and says so in four lines.
_own = {"XDG_CONFIG_HOME": "~/.config", "XDG_CACHE_HOME": "~/.cache"}
_places = [os.path.join(os.environ.get(name) or os.path.expanduser(home), "matplotlib") for name, home in _own.items()]
if not os.environ.get("MPLCONFIGDIR") and not all(map(_can_be_made, map(os.path.abspath, _places))):
    import logging

    logging.getLogger("matplotlib").setLevel(logging.ERROR)

if TYPE_CHECKING:
    from .analysis.leaderboard import leaderboard as leaderboard
    from .data.declared import DataSet as DataSet
    from .errors import UserError as UserError
    from .execution.plan import plan as plan
    from .fields import setting as setting
    from .method.artifact import Artifact as Artifact
    from .method.base import Choice as Choice
    from .method.base import Method as Method
    from .method.base import Preset as Preset
    from .method.base import Range as Range
    from .method.plugged import from_plugin as from_plugin
    from .method.registered import register as register
    from .method.serving import load as load
    from .nn.conditional import TaskConditional as TaskConditional
    from .nn.multihead import MultiHead as MultiHead
    from .protocol import Protocol as Protocol
    from .protocol import Published as Published
    from .protocol import Recipe as Recipe
    from .protocol import Task as Task
    from .protocol import split as split
    from .record.predictions import predictions as predictions
    from .record.schema import Job as Job
    from .record.schema import RunRecord as RunRecord
    from .record.table import records as records
    from .training.runner import run as run
    from .training.settings import resolve as resolve

    __version__: str

_PUBLIC = {  # the module of each public name, imported when the name is first used: `--help` and boards need no torch
    **dict.fromkeys(("Choice", "Preset", "Method", "Range"), "method.base"),
    **dict.fromkeys(("Protocol", "Published", "Recipe", "Task", "split"), "protocol"),
    **dict.fromkeys(("Job", "RunRecord"), "record.schema"),
    "Artifact": "method.artifact",
    "DataSet": "data.declared",
    "from_plugin": "method.plugged",
    "MultiHead": "nn.multihead",
    "TaskConditional": "nn.conditional",
    "UserError": "errors",
    "leaderboard": "analysis.leaderboard",
    "load": "method.serving",
    "plan": "execution.plan",
    "predictions": "record.predictions",
    "records": "record.table",
    "register": "method.registered",
    "resolve": "training.settings",
    "run": "training.runner",
    "setting": "fields",
}
__all__ = ["__version__", *sorted(_PUBLIC)]


if not TYPE_CHECKING:  # a type checker would take any name at all for a public one

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            from importlib.metadata import version

            return version("benchsuite")
        if name in _PUBLIC:
            return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)
        raise AttributeError(f"module 'benchsuite' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
