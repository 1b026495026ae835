"""Image sets: fetched or found in a folder, verified, decoded once into a cache of uint8 arrays."""

from .sets import ImageSet, get, load, verify

__all__ = ["ImageSet", "get", "load", "verify"]
