"""SVHN: 32x32 colour images of digits in house numbers (Netzer et al., 2011); label 0 is the digit 0."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path

import numpy as np

from ...errors import UserError
from ..declared import DataSet, Official, Source, declare
from ..fetch import Remote
from ..readers import decoding, labels, read_bytes, two_files

SITE = "http://ufldl.stanford.edu/housenumbers/"
MD5 = {"train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373", "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3"}


def _svhn(folder: Path) -> Source | None:
    for place in (folder, folder / "svhn", folder / "SVHN"):
        files = [place / "train_32x32.mat", place / "test_32x32.mat"]
        if any(f.exists() for f in files):
            return Source(place=place, files=files, read=partial(two_files, _mat, *files))
    return None


def _mat(file: Path) -> tuple[np.ndarray, np.ndarray]:
    from scipy.io import loadmat

    raw = read_bytes(file)
    with decoding(file, "a MATLAB file"):
        content = loadmat(io.BytesIO(raw), variable_names=["X", "y"])
        x, y = content["X"], content["y"]
        if x.dtype != np.uint8 or x.ndim != 4 or x.shape[:3] != (32, 32, 3):
            raise ValueError(f"X is {x.dtype} of shape {x.shape}, expected uint8 (32, 32, 3, N)")
    y = labels(y.ravel(), 11, file, images=x.shape[3])
    if not y.all():
        raise UserError(f"{file}: label 0 lies outside 1..10 (10 is the digit 0)", "fetch it again")
    return np.ascontiguousarray(x.transpose(3, 0, 1, 2)), y % 10


declare(
    DataSet(
        name="svhn",
        classes=10,
        reader=_svhn,
        layouts="train_32x32.mat and test_32x32.mat, there or in svhn/",
        fetch=(tuple(Remote((SITE + file,), file, md5) for file, md5 in MD5.items()),),
        official=Official(train=73_257, test=26_032, md5=MD5),
    )
)
