"""What a method is, and the methods by name."""

from .base import Choice, Method, Preset, Range
from .registered import methods, register

__all__ = ["Choice", "Method", "Preset", "Range", "methods", "register"]
