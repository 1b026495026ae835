"""Image sets: downloaded or found in a folder, verified, and decoded once into a cache of uint8 arrays."""

from .sets import ImageSet, get, load, verify

__all__ = ["ImageSet", "get", "load", "verify"]
