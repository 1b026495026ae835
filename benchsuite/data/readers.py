"""The official file layouts of each image set and their decoders.

`find` finds the files of a set without reading pixels, so that a cached decoding can be recognised; `read` decodes them.
Any fault of a file is one UserError with its name.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import struct
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from . import pickles
from .cache import Arrays

LETTERS = "ABCDEFGHIJ"
UNREADABLE = 5  # notMNIST was collected from the web; two files of notMNIST_small have never been readable


@dataclass(frozen=True)
class Source:
    """The files of one image set.

    place: the folder or archive, for messages.
    files: everything that `read` reads.
    read: decodes them; the second value says what was left out, or "".
    distribution: whose official counts apply (a key of `sets.OFFICIAL`).
    """

    place: Path
    files: Sequence[Path]
    read: Callable[[], tuple[Arrays, str]]
    distribution: str


def find(name: str, folder: Path) -> Source | None:
    """The source of the set in `folder`, preferring an archive to its extracted files; None if there is none."""
    return FIND[name](folder)


# ---- CIFAR


def _cifar(folder: Path, *, name: str, key: str, classes: int, train: list[str], test: str) -> Source | None:
    inner = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[name]
    archive = folder / {"cifar10": "cifar-10-python.tar.gz", "cifar100": "cifar-100-python.tar.gz"}[name]

    def read(parts: Callable[[], dict[str, bytes]], place: Path) -> tuple[Arrays, str]:
        raw = parts()
        decoded = [_cifar_part(raw.pop(part), place / part, key, classes) for part in (*train, test)]
        x, y = (np.concatenate(part) for part in zip(*decoded[:-1], strict=True))
        return Arrays(x, y, *decoded[-1]), ""

    if archive.exists():
        return Source(archive, [archive], lambda: read(lambda: _from_tar(archive, inner, [*train, test]), archive), name)
    if (folder / inner).is_dir():
        files = [folder / inner / part for part in (*train, test)]
        return Source(folder / inner, files, lambda: read(lambda: {f.name: _bytes(f) for f in files}, folder / inner), name)
    return None


def _from_tar(archive: Path, inner: str, names: list[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with _decoding(archive, "a tar.gz archive"), tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            path = Path(member.name)
            if path.parent.name == inner and path.name in names and (file := tar.extractfile(member)):
                found[path.name] = file.read()
    if missing := [n for n in names if n not in found]:
        raise UserError(f"{archive}: holds no {inner}/{missing[0]}", "fetch it again")
    return found


def _cifar_part(raw: bytes, file: Path, key: str, classes: int) -> tuple[np.ndarray, np.ndarray]:
    content = _dict(raw, file, ("data", key))
    data = content["data"]
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        raise UserError(f"{file}: 'data' is not a uint8 array of shape (N, 3072)", "fetch it again")
    x = np.ascontiguousarray(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return x, _labels(content[key], classes, file, images=len(x))


# ---- MNIST and Fashion-MNIST


def _mnist(folder: Path, *, name: str, folders: Sequence[str]) -> Source | None:
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
            xs, ys, xt, yt = (_idx(file, ndim) for file, (_, ndim) in zip(whole, parts, strict=True))
            for file, x in ((whole[0], xs), (whole[2], xt)):
                if x.shape[1:] != (28, 28):
                    raise UserError(f"{file}: images are {x.shape[1]}x{x.shape[2]}, expected 28x28", "fetch it again")
            labels = (_labels(y, 10, file, images=len(x)) for y, file, x in ((ys, whole[1], xs), (yt, whole[3], xt)))
            return Arrays(xs[..., None], next(labels), xt[..., None], next(labels)), ""

        return Source(place, whole, read, name)
    return None


def _idx(file: Path, ndim: int) -> np.ndarray:
    """An idx file of unsigned bytes: magic 0x800 + number of dimensions, the dimensions, the values; big-endian."""
    raw = _bytes(file)
    if file.suffix == ".gz":
        with _decoding(file, "a gzip file"):
            raw = gzip.decompress(raw)
    with _decoding(file, "an idx file"):
        magic, *shape = struct.unpack_from(f">{ndim + 1}I", raw)
        if magic != 0x800 + ndim:
            raise ValueError(f"magic number {magic}, expected {0x800 + ndim}")
        size = 4 * (ndim + 1) + int(np.prod(shape, dtype=object))
        if len(raw) != size:
            raise ValueError(f"{len(raw):,} bytes, its header says {size:,}")
        return np.frombuffer(raw, np.uint8, offset=4 * (ndim + 1)).reshape(shape)


# ---- SVHN


def _svhn(folder: Path) -> Source | None:
    for place in (folder, folder / "svhn", folder / "SVHN"):
        files = [place / "train_32x32.mat", place / "test_32x32.mat"]
        if any(f.exists() for f in files):
            return Source(place, files, partial(_two_files, _mat, *files), "svhn")
    return None


def _mat(file: Path) -> tuple[np.ndarray, np.ndarray]:
    from scipy.io import loadmat

    raw = _bytes(file)
    with _decoding(file, "a MATLAB file"):
        content = loadmat(io.BytesIO(raw), variable_names=["X", "y"])
        x, y = content["X"], content["y"]
        if x.dtype != np.uint8 or x.ndim != 4 or x.shape[:3] != (32, 32, 3):
            raise ValueError(f"X is {x.dtype} of shape {x.shape}, expected uint8 (32, 32, 3, N)")
    y = _labels(y.ravel(), 11, file, images=x.shape[3])
    if not y.all():
        raise UserError(f"{file}: label 0 lies outside 1..10 (10 is the digit 0)", "fetch it again")
    return np.ascontiguousarray(x.transpose(3, 0, 1, 2)), y % 10


# ---- notMNIST


def _notmnist(folder: Path) -> Source | None:
    both = [f"{part}/{letter}" for part in ("Train", "Test") for letter in LETTERS]
    if (archive := folder / "notMNIST.zip").exists():
        return Source(archive, [archive], lambda: _acl_split(_zip_images(archive), archive), "notmnist")
    if (place := folder / "notMNIST").is_dir():
        files = _images_in(place, both)
        return Source(place, files, lambda: _acl_split(_folder_images(files), place), "notmnist")
    if (archive := folder / "notMNIST_small.tar.gz").exists():
        return Source(archive, [archive], lambda: _small_split(_tar_images(archive), archive), "notmnist_small")
    if (place := folder / "notMNIST_small").is_dir():
        files = _images_in(place, list(LETTERS))
        return Source(place, files, lambda: _small_split(_folder_images(files), place), "notmnist_small")
    return None


Images = Iterator[tuple[Path, bytes]]


def _zip_images(archive: Path) -> Images:
    with _decoding(archive, "a zip archive"), zipfile.ZipFile(archive) as z:
        for name in z.namelist():
            if _is_image(Path(name)):
                yield archive / name, z.read(name)


def _tar_images(archive: Path) -> Images:
    with _decoding(archive, "a tar.gz archive"), tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            if _is_image(Path(member.name)) and (file := tar.extractfile(member)):
                yield archive / member.name, file.read()


def _folder_images(files: list[Path]) -> Images:
    return ((file, _bytes(file)) for file in files)


def _is_image(path: Path) -> bool:
    """Whether this is an image and not a file of the operating system (`._x.png`, `.DS_Store`, `Thumbs.db`)."""
    return path.suffix.lower() in (".png", ".jpg", ".jpeg") and not path.name.startswith(".") and "__MACOSX" not in path.parts


def _images_in(place: Path, folders: Sequence[str]) -> list[Path]:
    for folder in folders:
        if not (place / folder).is_dir():
            raise UserError(f"{place}: has no folder {folder}", "extract the archive again")
    return [file for folder in folders for file in sorted((place / folder).iterdir()) if _is_image(file)]


def _letters(images: Images, place: Path) -> tuple[np.ndarray, np.ndarray, list[str], str]:
    """Decode images whose parent folder is their letter, in the order of their paths.

    Returns pixels (N, 28, 28, 1), labels, the name of each image's grandparent folder, and a note on skipped images.
    """
    pixels, labels, parents = [], [], []
    broken: list[Path] = []
    for file, raw in sorted(images):
        if len(file.parent.name) != 1 or file.parent.name not in LETTERS:
            continue
        try:
            pixels.append(_image(raw, file, (28, 28), "L"))
        except _Unreadable as error:
            broken.append(file)
            if len(broken) > UNREADABLE:
                raise UserError(f"{error}", f"more than {UNREADABLE} such images in {place}: extract or fetch it again") from None
            continue
        labels.append(LETTERS.index(file.parent.name))
        parents.append(file.parent.parent.name)
    if missing := sorted(set(range(10)) - set(labels)):
        raise UserError(f"{place}: has no readable image in a folder {LETTERS[missing[0]]}", "extract or fetch it again")
    note = f"{len(broken)} unreadable image{'s' * (len(broken) > 1)} skipped" if broken else ""
    return np.stack(pixels), np.array(labels, np.int64), parents, note


def _acl_split(images: Images, place: Path) -> tuple[Arrays, str]:
    x, y, parents, note = _letters(images, place)
    train, test = (np.array([p == part for p in parents], bool) for part in ("Train", "Test"))
    for part, chosen in (("Train", train), ("Test", test)):
        if missing := sorted(set(range(10)) - set(y[chosen].tolist())):
            raise UserError(f"{place}: has no readable image in {part}/{LETTERS[missing[0]]}", "extract or fetch it again")
    return Arrays(x[train], y[train], x[test], y[test]), note


def _small_split(images: Images, place: Path) -> tuple[Arrays, str]:
    """notMNIST_small has no official split: a fixed random tenth of each class is the test set."""
    x, y, _, note = _letters(images, place)
    train, test = split_classes(y, np.random.default_rng(0), lambda n: n - n // 10)
    return Arrays(x[train], y[train], x[test], y[test]), note


def split_classes(y: np.ndarray, rng: Any, train: Callable[[int], int]) -> tuple[np.ndarray, np.ndarray]:
    """Indices of a training and a test part: the n images of each class are shuffled; the first train(n) are for training.

    Both are in ascending order, so that a part keeps the order of the whole set.
    """
    parts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for label in np.unique(y):
        indices = np.flatnonzero(y == label)
        rng.shuffle(indices)
        for part, chosen in zip(parts, np.split(indices, [train(len(indices))]), strict=True):
            part.append(chosen)
    return np.sort(np.concatenate(parts[0])), np.sort(np.concatenate(parts[1]))


# ---- miniImageNet


def _miniimagenet(folder: Path) -> Source | None:
    for place in (folder / "miniImageNet", folder / "miniimagenet", folder / "mini-imagenet", folder):
        pair = [place / "train.pkl", place / "test.pkl"]
        if any(f.exists() for f in pair):
            return Source(place, pair, partial(_two_files, _mini_pickle, *pair), "miniimagenet")
        if place == folder or not place.is_dir():
            continue
        if (place / "train.csv").exists():
            tables = [place / f"{part}.csv" for part in ("train", "val", "test")]
            rows = [(place / "images" / r["filename"], r["label"]) for t in tables for r in _table(t, ("filename", "label"))]
            return _mini_source(place, sorted(rows, key=lambda row: (row[1], row[0].name)), tables, None)
        if (table := place / "split.csv").exists():
            listed = _table(table, ("filename", "label", "split"))
            for r in listed:
                if Path(r["filename"]).parent.name != r["label"] or r["split"] not in ("train", "test"):
                    raise UserError(
                        f"{table}: line for {r['filename']!r} says label {r['label']!r}, split {r['split']!r}",
                        "expected the label to be the image's folder and the split to be train or test",
                    )
            listed.sort(key=lambda r: r["filename"])
            rows = [(place / r["filename"], r["label"]) for r in listed]
            return _mini_source(place, rows, [table], np.array([r["split"] == "train" for r in listed]))
        wnids = sorted(f.name for f in place.iterdir() if f.is_dir() and re.fullmatch(r"n\d{8}", f.name))
        return _mini_source(place, [(file, file.parent.name) for file in _images_in(place, wnids)], [], None)
    return None


def _mini_source(place: Path, rows: list[tuple[Path, str]], tables: list[Path], train: np.ndarray | None) -> Source:
    """rows: image file and WordNet id. train: which of them are training images; None: ACL's split."""
    for file, times in Counter(file for file, _ in rows).most_common(1):
        if times > 1:
            raise UserError(f"{file}: is listed {times} times in the table of {place}", "restore the original table")
    for file, label in rows:
        if (own := re.match(r"n\d{8}", file.name)) and own[0] != label:
            raise UserError(
                f"{place}: a table or folder gives {file.name} the label {label!r}, its name says {own[0]}", "restore it"
            )
    wnids = sorted({wnid for _, wnid in rows})
    if len(wnids) != 100:
        raise UserError(f"{place}: holds images of {len(wnids)} classes, miniImageNet has 100", f"{HOW_TO['miniimagenet']}")

    def read() -> tuple[Arrays, str]:
        x: np.ndarray = np.empty((len(rows), 84, 84, 3), np.uint8)
        for i, (file, _) in enumerate(rows):
            x[i] = _image(_bytes(file), file, (84, 84), "RGB")
        # A class's index is the position of its WordNet id in sorted order; the upstream numbering is not documented.
        index = {wnid: i for i, wnid in enumerate(wnids)}
        y = np.array([index[wnid] for _, wnid in rows], np.int64)
        if train is None:
            # ACL's split_miniimagenet.py: numpy's first generator with seed 1234, 500 of a class's 600 images to train.
            a, b = split_classes(y, np.random.RandomState(1234), lambda n: n * 5 // 6)
            note = "ACL's split drawn over sorted WordNet ids and file names"
        else:
            a, b = np.flatnonzero(train), np.flatnonzero(~train)
            note = "split by its own table"
        return Arrays(x[a], y[a], x[b], y[b]), note

    return Source(place, [*tables, *(file for file, _ in rows)], read, "miniimagenet")


def _table(file: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    with _decoding(file, f"a CSV table with columns {', '.join(columns)}"):
        rows = list(csv.DictReader(io.StringIO(_bytes(file).decode())))
        if not rows or any(row.get(c) in (None, "") for row in rows for c in columns):
            raise ValueError("a column or a value is missing")
        for row in rows:
            if Path(row["filename"]).is_absolute() or ".." in Path(row["filename"]).parts:
                raise ValueError(f"{row['filename']} lies outside the data set's folder")
    return rows


def _mini_pickle(file: Path) -> tuple[np.ndarray, np.ndarray]:
    content = _dict(_bytes(file), file, ("images", "labels"))
    images = content["images"]
    with _decoding(file, "a pickle of 'images' and 'labels'"):
        x = images if isinstance(images, np.ndarray) else np.stack(images)
        if x.dtype != np.uint8 or x.shape[1:] != (84, 84, 3):
            raise ValueError(
                f"images are {x.dtype} of shape {x.shape}, expected uint8 (N, 84, 84, 3); resize them to 84x84 first"
            )
    return x, _labels(content["labels"], 100, file, images=len(x))


# ---- shared by several


def _two_files(decode: Callable[[Path], tuple[np.ndarray, np.ndarray]], train: Path, test: Path) -> tuple[Arrays, str]:
    return Arrays(*decode(train), *decode(test)), ""


class _Unreadable(UserError):
    """An image file that cannot be decoded, as opposed to one of the wrong size."""


def _image(raw: bytes, file: Path, size: tuple[int, int], mode: str) -> np.ndarray:
    """Pixels (H, W, 1) for mode L, (H, W, 3) for RGB. Raises UserError if the size is not width x height."""
    from PIL import Image

    try:
        with _decoding(file, "an image"), Image.open(io.BytesIO(raw)) as image:
            found = image.size
            pixels = np.asarray(image.convert(mode)) if found == size else None
    except UserError as error:
        raise _Unreadable(str(error)) from None
    if pixels is None:
        raise UserError(f"{file}: is {found[0]}x{found[1]}, expected {size[0]}x{size[1]}", "resize the images to that size first")
    return pixels.reshape(size[1], size[0], -1)


def _labels(values: Any, classes: int, file: Path, images: int) -> np.ndarray:
    with _decoding(file, "a list of labels"):
        y = np.asarray(values)
        if y.ndim != 1 or y.dtype.kind not in "iu":
            raise ValueError("labels are not whole numbers")
    if len(y) != images:
        raise UserError(f"{file}: has {len(y):,} labels for {images:,} images", "fetch it again")
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < classes:
        wrong = y[(y < 0) | (y >= classes)][0]
        raise UserError(f"{file}: label {wrong} lies outside 0..{classes - 1}", "fetch it again")
    return y.astype(np.int64)


def _dict(raw: bytes, file: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    """A pickled dictionary. Its keys are bytes if written by Python 2, text if by Python 3."""
    content = pickles.loads(raw, file)
    if isinstance(content, dict):
        content = {k.decode("latin1") if isinstance(k, bytes) else k: v for k, v in content.items()}
        if all(k in content for k in keys):
            return content
    raise UserError(f"{file}: is not a dictionary with {' and '.join(map(repr, keys))}", "fetch it again")


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}", "fetch it again") from None


@contextmanager
def _decoding(file: Path, kind: str) -> Iterator[None]:
    """Turn any exception of a decoder on damaged bytes into one line with the name of the file."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{file}: cannot be read as {kind} ({reason})", "it is damaged or cut short, fetch it again") from None


FIND: dict[str, Callable[[Path], Source | None]] = {
    "cifar100": partial(_cifar, name="cifar100", key="fine_labels", classes=100, train=["train"], test="test"),
    "cifar10": partial(
        _cifar,
        name="cifar10",
        key="labels",
        classes=10,
        train=[f"data_batch_{i}" for i in range(1, 6)],
        test="test_batch",
    ),
    "mnist": partial(_mnist, name="mnist", folders=("MNIST", "mnist")),
    "fashion_mnist": partial(_mnist, name="fashion_mnist", folders=("FashionMNIST", "fashion_mnist", "fashion-mnist")),
    "svhn": _svhn,
    "notmnist": _notmnist,
    "miniimagenet": _miniimagenet,
}

LAYOUTS = {
    "cifar100": "cifar-100-python.tar.gz, cifar-100-python/",
    "cifar10": "cifar-10-python.tar.gz, cifar-10-batches-py/",
    "mnist": "MNIST/raw/*-ubyte[.gz], MNIST/*-ubyte[.gz]",
    "fashion_mnist": "FashionMNIST/raw/*-ubyte[.gz], FashionMNIST/*-ubyte[.gz]",
    "svhn": "train_32x32.mat and test_32x32.mat, there or in svhn/",
    "notmnist": "notMNIST.zip, notMNIST/{Train,Test}/{A..J}/, notMNIST_small.tar.gz, notMNIST_small/{A..J}/",
    "miniimagenet": (
        "miniImageNet/ with <wnid>/*.jpg [and split.csv], with {train,val,test}.csv and images/, or with train.pkl and test.pkl"
    ),
}

HOW_TO = {
    "miniimagenet": (
        "it may not be passed on, so build it from ImageNet with https://github.com/yaoyao-liu/mini-imagenet-tools, "
        "resize to 84x84 and lay it out in the data folder as miniImageNet/<wnid>/*.jpg"
    ),
    "notmnist": (
        "the archive that the published runs used is data/notMNIST.zip of "
        "https://github.com/facebookresearch/Adversarial-Continual-Learning: "
        "put notMNIST.zip or its folders notMNIST/{Train,Test}/{A..J} into the data folder"
    ),
}
