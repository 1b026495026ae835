"""Imports all that a run may need of ours: the server imports it before it forks. Other packages wait for their run."""

from ..method.registered import methods
from ..protocol import protocols
from ..training import runner

__all__ = ["runner"]

methods.import_ours()
protocols.import_ours()
