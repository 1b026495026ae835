"""The 1,797 handwritten digits of 8x8 that come with scikit-learn (UCI optical digits), values 0..16 scaled to 0..255.

That copy has no split: a fixed random two thirds of each class are for training.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..cache import Arrays
from ..declared import DataSet, Official, Source, declare
from ..readers import split_classes


def _read() -> tuple[Arrays, str]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = np.rint(images.reshape(-1, 8, 8, 1) * 255 / 16).astype(np.uint8)
    y = labels.astype(np.int64)
    train, test = split_classes(y, np.random.default_rng(0), lambda n: n * 2 // 3)
    return Arrays(x[train], y[train], x[test], y[test]), ""


declare(
    DataSet(
        name="digits",
        classes=10,
        reader=lambda folder: Source(place=Path("scikit-learn"), files=(), read=_read),
        official=Official(train=1_195, test=602, digest="11242647ade1e6908eb7a6577611835a4a12468d8aff5efdfba71298846e5438"),
    )
)
