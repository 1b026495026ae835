"""MNIST: 28x28 handwritten digits (LeCun, Cortes and Burges)."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ...errors import UserError
from ..cache import Arrays
from ..declared import DataSet, Official, Source, declare
from ..fetch import Remote
from ..readers import decoding, labels, read_bytes


def idx_files(folder: Path, *, folders: Sequence[str]) -> Source | None:
    """The four files of MNIST, packed or not, in one of these folders or in its folder raw."""
    parts = [
        ("train-images-idx3-ubyte", 3),
        ("train-labels-idx1-ubyte", 1),
        ("t10k-images-idx3-ubyte", 3),
        ("t10k-labels-idx1-ubyte", 1),
    ]
    for place in (folder / f / sub for f in folders for sub in ("raw", ".")):
        files = [next((f for f in (place / f"{part}.gz", place / part) if f.exists()), None) for part, _ in parts]
        if not any(files):
            continue
        whole = [file or place / part for file, (part, _) in zip(files, parts, strict=True)]

        def read(whole: list[Path] = whole) -> tuple[Arrays, str]:
            xs, ys, xt, yt = (idx(file, ndim) for file, (_, ndim) in zip(whole, parts, strict=True))
            for file, x in ((whole[0], xs), (whole[2], xt)):
                if x.shape[1:] != (28, 28):
                    raise UserError(f"{file}: images are {x.shape[1]}x{x.shape[2]}, expected 28x28", "fetch it again")
            y = (labels(y, 10, file, images=len(x)) for y, file, x in ((ys, whole[1], xs), (yt, whole[3], xt)))
            return Arrays(xs[..., None], next(y), xt[..., None], next(y)), ""

        return Source(place=place, files=whole, read=read)
    return None


def idx(file: Path, ndim: int) -> np.ndarray:
    """An idx file of unsigned bytes: magic 0x800 + number of dimensions, the dimensions, the values; big-endian."""
    raw = read_bytes(file)
    if file.suffix == ".gz":
        with decoding(file, "a gzip file"):
            raw = gzip.decompress(raw)
    with decoding(file, "an idx file"):
        magic, *shape = struct.unpack_from(f">{ndim + 1}I", raw)
        if magic != 0x800 + ndim:
            raise ValueError(f"magic number {magic}, expected {0x800 + ndim}")
        size = 4 * (ndim + 1) + int(np.prod(shape, dtype=object))
        if len(raw) != size:
            raise ValueError(f"{len(raw):,} bytes, its header says {size:,}")
        return np.frombuffer(raw, np.uint8, offset=4 * (ndim + 1)).reshape(shape)


MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/")
MD5 = {  # as torchvision has them
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}

declare(
    DataSet(
        name="mnist",
        classes=10,
        reader=partial(idx_files, folders=("MNIST", "mnist")),
        layouts="MNIST/raw/*-ubyte[.gz], MNIST/*-ubyte[.gz]",
        fetch=(tuple(Remote(tuple(m + file for m in MIRRORS), f"MNIST/raw/{file}", md5) for file, md5 in MD5.items()),),
        official=Official(train=60_000, test=10_000, digest="1ab36173c5442eefac1052e16cd4f6fadab376babf2649f6ff42f84b978b3824"),
    )
)
