"""benchsuite: continual learning inside a storage budget, measured on equal terms."""

import os
import warnings
from importlib import import_module
from typing import Any

# PyTorch's profiler, which counts allocations, says when it starts, when it stops and which blocks it has not seen before
os.environ.setdefault("KINETO_LOG_LEVEL", "6")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
warnings.filterwarnings("ignore", message="no QP solver found")  # Avalanche imports a solver library for GEM, on every start

_PUBLIC = {
    "Method": "method",
    "Declared": "method",
    "Range": "method",
    "Choice": "method",
    "register": "method",
    "Artifact": "artifact",
    "load": "artifact",
    "MultiHead": "nn.multihead",
    "TaskConditional": "nn.multihead",
    "Protocol": "protocol",
    "Task": "protocol",
    "Recipe": "protocol",
    "Published": "leaderboard",
    "leaderboard": "leaderboard",
    "Job": "records",
    "RunRecord": "records",
    "resolve": "settings",
    "run": "runner",
    "UserError": "errors",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    """Load what is asked for, when it is asked for: a leaderboard needs no torch, `--help` needs nothing at all."""
    if name in _PUBLIC:
        return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)
    raise AttributeError(f"module 'benchsuite' has no attribute {name!r}")
