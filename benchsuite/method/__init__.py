"""What a method is, and the methods by name."""

from .base import Choice, Declared, Method, Range
from .registered import methods, register

__all__ = ["Choice", "Declared", "Method", "Range", "methods", "register"]
