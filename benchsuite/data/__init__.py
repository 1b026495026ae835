"""Image sets: declared, downloaded or found in a folder, verified, and decoded once into a cache of uint8 arrays."""

from .declared import DataSet, Official, Source, datasets, declare
from .fetch import Remote
from .readers import AnyOf, ImageFolder, Npz, Parquet, Torchvision
from .sets import ImageSet, get, load, verify

__all__ = [
    "AnyOf",
    "DataSet",
    "ImageFolder",
    "ImageSet",
    "Npz",
    "Official",
    "Parquet",
    "Remote",
    "Source",
    "Torchvision",
    "datasets",
    "declare",
    "get",
    "load",
    "verify",
]
