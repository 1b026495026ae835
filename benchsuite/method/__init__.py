"""The method interface, and the registered methods."""

from .base import Choice, Method, Preset, Range
from .registered import methods, register

__all__ = ["Choice", "Method", "Preset", "Range", "methods", "register"]
