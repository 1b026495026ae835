"""notMNIST: 28x28 letters A to J in many typefaces (Bulatov, 2011)."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ...errors import UserError
from ..cache import Arrays
from ..declared import DataSet, Official, Source, declare
from ..fetch import Remote
from ..readers import Unreadable, decode_image, decoding, listed, read_bytes, split_classes

LETTERS = "ABCDEFGHIJ"
FORMATS = ("PNG", "JPEG")
UNREADABLE = 5  # notMNIST was collected from the web; two files of notMNIST_small have never been readable

SMALL = Official(
    train=16_854,
    test=1_870,  # its 18,726 files without the two unreadable ones
    substitute="notMNIST_small with a fixed 90/10 split in place of the ACL archive",
)


def _notmnist(folder: Path) -> Source | None:
    both = [f"{part}/{letter}" for part in ("Train", "Test") for letter in LETTERS]
    if (archive := folder / "notMNIST.zip").exists():
        return Source(place=archive, files=[archive], read=lambda: _acl_split(_zip_images(archive), archive))
    if (place := folder / "notMNIST").is_dir():
        files = images_in(place, both)
        return Source(place=place, files=files, read=lambda: _acl_split(_folder_images(files), place))
    if (archive := folder / "notMNIST_small.tar.gz").exists():
        return Source(place=archive, files=[archive], read=lambda: _small_split(_tar_images(archive), archive), official=SMALL)
    if (place := folder / "notMNIST_small").is_dir():
        files = images_in(place, list(LETTERS))
        return Source(place=place, files=files, read=lambda: _small_split(_folder_images(files), place), official=SMALL)
    return None


Images = Iterator[tuple[Path, bytes]]


def _zip_images(archive: Path) -> Images:
    with decoding(archive, "a zip archive"), zipfile.ZipFile(archive) as z:
        for name in z.namelist():
            if is_image(Path(name)):
                yield archive / name, z.read(name)


def _tar_images(archive: Path) -> Images:
    with decoding(archive, "a tar.gz archive"), tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            if is_image(Path(member.name)) and (file := tar.extractfile(member)):
                yield archive / member.name, file.read()


def _folder_images(files: list[Path]) -> Images:
    return ((file, read_bytes(file)) for file in files)


def is_image(path: Path) -> bool:
    """Whether this is an image and not a file of the operating system (`._x.png`, `.DS_Store`, `Thumbs.db`)."""
    return path.suffix.lower() in (".png", ".jpg", ".jpeg") and not path.name.startswith(".") and "__MACOSX" not in path.parts


def images_in(place: Path, folders: Sequence[str]) -> list[Path]:
    for folder in folders:
        if not (place / folder).is_dir():
            raise UserError(f"{place}: has no folder {folder}", "extract the archive again")
    return [file for folder in folders for file in listed(place / folder) if is_image(file)]


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
            pixels.append(decode_image(raw, file, (28, 28), "L", formats=FORMATS, exact=True))
        except Unreadable as error:
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


declare(
    DataSet(
        name="notmnist",
        classes=10,
        reader=_notmnist,
        layouts="notMNIST.zip, notMNIST/{Train,Test}/{A..J}/, notMNIST_small.tar.gz, notMNIST_small/{A..J}/",
        # No checksum was published; users of the set have long checked for this size.
        fetch=(
            (Remote(("http://yaroslavvb.com/upload/notMNIST/notMNIST_small.tar.gz",), "notMNIST_small.tar.gz", size=8_458_043),),
        ),
        how_to="fetching notMNIST_small as a substitute; the archive that the published runs used is data/notMNIST.zip of "
        "https://github.com/facebookresearch/Adversarial-Continual-Learning: "
        "put notMNIST.zip or its folders notMNIST/{Train,Test}/{A..J} into the data folder",
        # The counts of ACL's archive are not published, but CACL's published accuracy on it is 143/153.
        official=Official(test_multiple=153),
    )
)
