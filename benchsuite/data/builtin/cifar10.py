"""CIFAR-10: 32x32 colour images of ten kinds of things (Krizhevsky, 2009)."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ...errors import UserError
from ..cache import Arrays
from ..declared import DataSet, Official, Source, declare
from ..fetch import Remote
from ..readers import decoding, labels, pickled, read_bytes

ARCHIVE, INNER = "cifar-10-python.tar.gz", "cifar-10-batches-py"
MD5 = {  # of the archive and of what it holds, as torchvision has them
    ARCHIVE: "c58f30108f718f92721af3b95e74349a",
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}


def batches(folder: Path, *, inner: str, archive: str, key: str, classes: int, train: Sequence[str], test: str) -> Source | None:
    """CIFAR's pickled batches: an archive, or the folder that it holds."""
    packed = folder / archive

    def read(parts: Callable[[], dict[str, bytes]], place: Path) -> tuple[Arrays, str]:
        raw = parts()
        decoded = [_part(raw.pop(part), place / part, key, classes) for part in (*train, test)]
        x, y = (np.concatenate(part) for part in zip(*decoded[:-1], strict=True))
        return Arrays(x, y, *decoded[-1]), ""

    if packed.exists():
        return Source(place=packed, files=[packed], read=lambda: read(lambda: _from_tar(packed, inner, [*train, test]), packed))
    if (folder / inner).is_dir():
        files = [folder / inner / part for part in (*train, test)]
        return Source(
            place=folder / inner, files=files, read=lambda: read(lambda: {f.name: read_bytes(f) for f in files}, files[0].parent)
        )
    return None


def _from_tar(archive: Path, inner: str, names: Sequence[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with decoding(archive, "a tar.gz archive"), tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            path = Path(member.name)
            if path.parent.name == inner and path.name in names and (file := tar.extractfile(member)):
                found[path.name] = file.read()
    if missing := [n for n in names if n not in found]:
        raise UserError(f"{archive}: holds no {inner}/{missing[0]}", "fetch it again")
    return found


def _part(raw: bytes, file: Path, key: str, classes: int) -> tuple[np.ndarray, np.ndarray]:
    content = pickled(raw, file, ("data", key))
    data = content["data"]
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        raise UserError(f"{file}: 'data' is not a uint8 array of shape (N, 3072)", "fetch it again")
    x = np.ascontiguousarray(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return x, labels(content[key], classes, file, images=len(x))


declare(
    DataSet(
        name="cifar10",
        classes=10,
        reader=partial(
            batches,
            inner=INNER,
            archive=ARCHIVE,
            key="labels",
            classes=10,
            train=[f"data_batch_{i}" for i in range(1, 6)],
            test="test_batch",
        ),
        layouts=f"{ARCHIVE}, {INNER}/",
        fetch=((Remote((f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}",), ARCHIVE, MD5[ARCHIVE]),),),
        official=Official(train=50_000, test=10_000, balanced=True, md5=MD5),
    )
)
