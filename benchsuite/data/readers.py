"""Readers of data sets, and what readers share.

A reader finds the files of a set in a folder without reading pixels, so that a cached decoding can be recognised; `Source.read`
then decodes them. Any fault of a file is one UserError with its name. No reader runs what a file says: pickles are read as plain
data only, and images are opened in the listed formats only (Pillow hands PostScript to Ghostscript).
"""

from __future__ import annotations

import inspect
import io
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np

from ..errors import UserError, printable
from ..files import all_below
from . import pickles
from .cache import Arrays, check_regular
from .declared import Reader, Source

Mode = Literal["L", "RGB"]
Size = int | tuple[int, int] | None

# The formats of photographs and scans, by the ending of a file's name. Pillow knows more; some of them start other programs.
FORMATS = {
    **{".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".bmp": "BMP", ".gif": "GIF", ".webp": "WEBP"},
    **{".tif": "TIFF", ".tiff": "TIFF", ".ppm": "PPM", ".pgm": "PPM"},
}
AGAIN = "it is damaged or cut short, fetch it again"


@dataclass(frozen=True)
class AnyOf:
    """The first of several readers that finds its files."""

    readers: tuple[Reader, ...]

    def __call__(self, folder: Path) -> Source | None:
        return next((source for reader in self.readers if (source := reader(folder))), None)


@dataclass(frozen=True, kw_only=True)
class ImageFolder:
    """One folder of image files for each class: `train/<class>/*` and `test/<class>/*`, or `<class>/*` alone.

    Labels follow the sorted names of the class folders. Images are turned as their camera says.
    size: height and width, or one number for both; each image is scaled to cover it and cut around its centre. None: all images
        have one size already.
    mode: "RGB", or "L" for grey.
    train, test: the names of the two folders.
    test_share, seed: where there is no folder of test images, this share of each class, drawn with this seed, is for testing.
    """

    size: Size = None
    mode: Mode = "RGB"
    train: str = "train"
    test: str = "test"
    test_share: float = 0.2
    seed: int = 0

    @property
    def layout(self) -> str:
        return f"{self.train}/<class>/*.jpg and {self.test}/<class>/*.jpg, or <class>/*.jpg"

    def __call__(self, folder: Path) -> Source | None:
        places = [folder / self.train, folder / self.test]
        if not places[1].is_dir():
            places = places[:1] if places[0].is_dir() else [folder]
        if not places[0].is_dir():
            return None
        names = [[entry.name for entry in listed(place) if entry.is_dir()] for place in places]
        if not names[0]:
            return None
        for name in sorted(set(names[0]) ^ set(names[-1])):
            has, lacks = (0, 1) if name in names[0] else (1, 0)
            raise UserError(f"{places[lacks]}: has no folder {name}, {places[has]} has one", "every class needs both")
        chosen, left = list[list[tuple[Path, int]]](), list[Path]()
        for place in places:
            chosen.append([])
            for label, name in enumerate(names[0]):
                for file in listed(place / name):
                    image = file.suffix.lower() in FORMATS
                    (chosen[-1].append((file, label)) if image else left.append(file))
        endings = sorted({file.suffix.lower() or file.name for file in left})
        kind = "files left out that are no images" if len(left) > 1 else "file left out that is no image"
        note = f"{len(left)} {kind} ({', '.join(endings[:5])})" if left else ""

        def read() -> tuple[Arrays, str]:
            parts = []
            for files in chosen:
                pixels = stacked((decode_image(read_bytes(f), f, self.size, self.mode) for f, _ in files), len(files))
                parts.append((pixels, np.array([label for _, label in files], np.int64)))
            return together(parts, self.test_share, self.seed), printable(note)

        return Source(place=folder, files=[f for files in chosen for f, _ in files], read=read, settings=repr(self))


@dataclass(frozen=True)
class Npz:
    """Arrays in one file of numpy's: pixels uint8 (N, H, W) or (N, H, W, C), labels whole numbers (N,).

    train, test: the names of the arrays of pixels and labels. test_share, seed: as for `ImageFolder`, where `test` is None.
    """

    file: str
    train: tuple[str, str] = ("x_train", "y_train")
    test: tuple[str, str] | None = ("x_test", "y_test")
    test_share: float = 0.2
    seed: int = 0

    @property
    def layout(self) -> str:
        return self.file

    def __call__(self, folder: Path) -> Source | None:
        file = folder / self.file

        def read() -> tuple[Arrays, str]:
            with decoding(file, "an .npz file"), np.load(file, allow_pickle=False) as content:
                parts = [self._part(content, names) for names in (self.train, self.test) if names]
            return together(parts, self.test_share, self.seed), ""

        return Source(place=file, files=[file], read=read, settings=repr(self)) if file.exists() else None

    def _part(self, content: Any, names: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
        if lacking := [name for name in names if name not in content]:
            raise ValueError(f"it has no array {lacking[0]!r}, but {', '.join(map(repr, content))}")
        x, y = content[names[0]], content[names[1]]
        if x.dtype != np.uint8 or x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[3] not in (1, 3)):
            raise ValueError(
                f"{names[0]} is {x.dtype} of shape {x.shape}, expected uint8 (N, H, W) or (N, H, W, C) with 1 or 3 channels"
            )
        return x.reshape(*x.shape[:3], -1), whole_numbers(y, len(x))


@dataclass(frozen=True, kw_only=True)
class Parquet:
    """The layout of the Hugging Face hub: tables with a column of encoded images and one of labels.

    image: the column of images, bytes or {"bytes", "path"}. label: the column of whole numbers.
    train, test: the files, in sorted order; within: the folders in which they may lie. size, mode, test_share, seed: as for
    `ImageFolder`.
    """

    image: str = "image"
    label: str = "label"
    train: str = "train-*.parquet"
    test: str = "test-*.parquet"
    within: tuple[str, ...] = (".", "data")
    size: Size = None
    mode: Mode = "RGB"
    test_share: float = 0.2
    seed: int = 0

    @property
    def layout(self) -> str:
        return f"{self.train} and {self.test}" + f" in {' or '.join(self.within)}" * (self.within != (".",))

    def __call__(self, folder: Path) -> Source | None:
        for place in (folder / name for name in self.within):
            found = listed(place) if place.is_dir() else []
            parts = [[file for file in found if fnmatch(file.name, pattern)] for pattern in (self.train, self.test)]
            if not parts[0]:
                continue

            def read(parts: list[list[Path]] = parts) -> tuple[Arrays, str]:
                return together([self._part(files) for files in parts if files], self.test_share, self.seed), ""

            return Source(place=place, files=[*parts[0], *parts[1]], read=read, settings=repr(self))
        return None

    def _part(self, files: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
        from pyarrow import parquet

        images: list[np.ndarray] = []
        labels: list[Any] = []
        for file in files:
            with decoding(file, "a parquet table of images"), parquet.ParquetFile(file) as table:
                names = table.schema_arrow.names
                if lacking := [name for name in (self.image, self.label) if name not in names]:
                    raise ValueError(f"it has no column {lacking[0]!r}, but {', '.join(map(repr, names))}")
                for batch in table.iter_batches(512, columns=[self.image, self.label]):
                    for value in batch.column(self.image).to_pylist():
                        raw = value.get("bytes") if isinstance(value, dict) else value
                        if not isinstance(raw, bytes):
                            raise ValueError(f"image {len(images)} has no bytes")
                        images.append(decode_image(raw, file, self.size, self.mode))
                    labels += batch.column(self.label).to_pylist()
        with decoding(files[0], "a parquet table of images"):
            return stacked(images, len(images)), whole_numbers(labels, len(images))


@dataclass(frozen=True, eq=False)
class Torchvision:
    """A data set class of torchvision, by its name. Labels are numbered from 0 in sorted order.

    options: arguments of the class for both parts, such as {"split": "letters"}. train, test: those of each part; by default
    `train=True` and `train=False`, or `split="train"` and `split="test"`, whichever the class has.
    size, mode: as for `ImageFolder`. Give it a `folder` of its own: every file in it counts as one of the set.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] | None = None
    test: Mapping[str, Any] | None = None
    size: Size = None
    mode: Mode = "RGB"

    @property
    def layout(self) -> str:
        return f"the files of torchvision.datasets.{self.name}"

    def __call__(self, folder: Path) -> Source | None:
        files = all_below(folder)
        return Source(place=folder, files=files, read=partial(self._read, folder), settings=repr(self)) if files else None

    def fetch(self, folder: Path) -> None:
        """Download the files, as torchvision does."""
        for part in (0, 1):
            self._part(folder, part, download=True)

    def _part(self, folder: Path, part: int, **more: Any) -> Any:
        from torchvision import datasets

        cls = getattr(datasets, self.name, None)
        if not inspect.isclass(cls):
            raise UserError(f"torchvision has no data set {self.name!r}", "see torchvision.datasets for their names")
        if hasattr(sys.modules[cls.__module__], "pickle"):
            raise UserError(
                f"torchvision's {self.name} runs pickles, which may run anything",
                "cifar10 and cifar100 are data sets of benchsuite",
            )
        known = inspect.signature(cls).parameters
        own = (self.train, self.test)[part]
        if own is None:
            base = [name for one in cls.__mro__[:2] for name in inspect.signature(one).parameters]
            own = {"train": part == 0} if "train" in base else {"split": ("train", "test")[part]}
        root = {"root": str(folder)} if "root" in known else {}
        with decoding(folder, f"torchvision's {self.name}", remedy="fetch it with `benchsuite data get`"), only_images():
            return cls(**root, **self.options, **own, **more)

    def _read(self, folder: Path) -> tuple[Arrays, str]:
        parts = []
        for part in (0, 1):
            made = self._part(folder, part)
            with decoding(folder, f"torchvision's {self.name}"), only_images():
                found, labels = [], []
                for i in range(len(made)):
                    image, label = made[i]
                    found.append(in_size(image, folder, self.size, self.mode))
                    labels.append(int(label))
                parts.append((stacked(found, len(found)), np.array(labels, np.int64)))
        names: np.ndarray = np.unique(parts[0][1])
        if unknown := sorted(set(parts[1][1].tolist()) - set(names.tolist())):
            raise UserError(f"{folder}: has test images of class {unknown[0]} and no training image of it")
        return together([(x, np.searchsorted(names, y).astype(np.int64)) for x, y in parts], 0, 0), ""


# ---- what readers share


def listed(folder: Path) -> list[Path]:
    """What lies in a folder, in sorted order, without what operating systems leave there (`._x.png`, `.DS_Store`)."""
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith(".") and entry.name != "__MACOSX")
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be read: {error.strerror}", "give yourself access to it, or name another folder"
        ) from None


def read_bytes(file: Path) -> bytes:
    try:
        check_regular(file)
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}", "fetch it again") from None


@contextmanager
def decoding(file: Path, kind: str, remedy: str = AGAIN) -> Iterator[None]:
    """Turn any exception of a decoder on damaged bytes into one line with the name of the file."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{file}: cannot be read as {kind} ({reason})", remedy) from None


class Unreadable(UserError):
    """An image file that cannot be decoded, as opposed to one of the wrong size."""


def decode_image(
    raw: bytes, file: Path, size: Size = None, mode: Mode = "RGB", *, formats: Sequence[str] = (), exact: bool = False
) -> np.ndarray:
    """Pixels (H, W, 1) for mode L, (H, W, 3) for RGB, from an encoded image.

    file: for messages. size: as for `ImageFolder`; with `exact` an image of another size is a UserError. formats: of Pillow, by
    default those of photographs and scans."""
    from PIL import ImageOps

    known = tuple(formats) or tuple(dict.fromkeys(FORMATS.values()))
    try:
        with decoding(file, "an image"), _opened(raw, known) as image:
            if exact and size is not None and image.size != _pair(size)[::-1]:
                pixels, found = None, image.size
            else:
                pixels = in_size(image if exact else ImageOps.exif_transpose(image), file, size, mode)
    except UserError as error:
        raise Unreadable(error.problem, error.remedy) from None
    if pixels is None:
        height, width = _pair(size)
        raise UserError(f"{file}: is {found[0]}x{found[1]}, expected {width}x{height}", "resize the images to that size first")
    return pixels


def _opened(raw: bytes, formats: Sequence[str]) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # twice as large is an error
            return Image.open(io.BytesIO(raw), formats=formats)
    except UnidentifiedImageError:  # it names the buffer
        raise ValueError(f"it is none of {', '.join(formats)}") from None


def in_size(image: Any, file: Path, size: Size, mode: Mode) -> np.ndarray:
    """The pixels of a Pillow image, scaled to cover the size and cut around its centre."""
    from PIL import Image, ImageOps

    if not isinstance(image, Image.Image):
        raise UserError(f"{file}: gives {type(image).__name__}, not an image", "use another reader")
    if image.mode in ("I", "F"):  # Pillow would make white of everything above 255
        raise UserError(f"{file}: has grey values of 32 bits, and nothing says their range", "save it with 8 or 16 bits")
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if "transparency" in image.info:  # of a palette; Pillow warns otherwise
        image = image.convert("RGBA")
    image = image.convert(mode)
    if size is not None and image.size != _pair(size)[::-1]:
        image = ImageOps.fit(image, _pair(size)[::-1], Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(image.size[1], image.size[0], -1)


def _pair(size: Size) -> tuple[int, int]:
    assert size is not None
    return (size, size) if isinstance(size, int) else size


_OPENING = Lock()


@contextmanager
def only_images() -> Iterator[None]:
    """While open, code of other packages opens images in the listed formats only."""
    from PIL import Image

    opened = Image.open

    def restricted(fp: Any, mode: Any = "r", formats: Any = None) -> Any:
        return opened(fp, mode, tuple(dict.fromkeys(FORMATS.values())))

    with _OPENING:
        Image.open = restricted
        try:
            yield
        finally:
            Image.open = opened


def stacked(images: Iterable[np.ndarray], n: int) -> np.ndarray:
    """n images of one size as one array (N, H, W, C). Raises UserError if they differ in size."""
    pixels = None
    for i, image in enumerate(images):
        if pixels is None:
            pixels = np.empty((n, *image.shape), np.uint8)
        if image.shape != pixels.shape[1:]:
            had, has = (f"{shape[1]}x{shape[0]}" for shape in (pixels.shape[1:], image.shape))
            raise UserError(f"images of several sizes ({had}, then {has} as image {i + 1})", "give the reader a size")
        pixels[i] = image
    if pixels is None:
        raise UserError("there are no images", "check the folder, and the endings of the names of its files")
    return pixels


def together(parts: Sequence[tuple[np.ndarray, np.ndarray]], test_share: float, seed: int) -> Arrays:
    """The training and the test part; a single part is split."""
    if len(parts) == 2:
        if parts[0][0].shape[1:] != parts[1][0].shape[1:]:
            raise UserError("training and test images differ in size", "give the reader a size")
        return Arrays(*parts[0], *parts[1])
    (x, y) = parts[0]
    train, test = split_classes(y, np.random.default_rng(seed), lambda n: n - max(1, round(n * test_share)))
    return Arrays(x[train], y[train], x[test], y[test])


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


def whole_numbers(values: Any, images: int) -> np.ndarray:
    """Labels (N,), int64. Raises ValueError for anything else than a whole number for each image."""
    y = np.asarray(values)
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise ValueError("labels are not whole numbers")
    if len(y) != images:
        raise ValueError(f"{len(y):,} labels for {images:,} images")
    return y.astype(np.int64)


def labels(values: Any, classes: int, file: Path, images: int) -> np.ndarray:
    """Labels 0..classes-1 of an official file."""
    with decoding(file, "a list of labels"):
        y = np.asarray(values)
        if y.ndim != 1 or y.dtype.kind not in "iu":
            raise ValueError("labels are not whole numbers")
    if len(y) != images:
        raise UserError(f"{file}: has {len(y):,} labels for {images:,} images", "fetch it again")
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < classes:
        wrong = y[(y < 0) | (y >= classes)][0]
        raise UserError(f"{file}: label {wrong} lies outside 0..{classes - 1}", "fetch it again")
    return y.astype(np.int64)


def two_files(decode: Callable[[Path], tuple[np.ndarray, np.ndarray]], train: Path, test: Path) -> tuple[Arrays, str]:
    return Arrays(*decode(train), *decode(test)), ""


def pickled(raw: bytes, file: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    """A pickled dictionary. Its keys are bytes if written by Python 2, text if by Python 3."""
    content = pickles.loads(raw, file)
    if isinstance(content, dict):
        content = {k.decode("latin1") if isinstance(k, bytes) else k: v for k, v in content.items()}
        if all(k in content for k in keys):
            return content
    raise UserError(f"{file}: is not a dictionary with {' and '.join(map(repr, keys))}", "fetch it again")
