"""miniImageNet: 84x84 images of a hundred classes of ImageNet (Vinyals et al., 2016)."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np

from ...errors import UserError
from ..cache import Arrays
from ..declared import DataSet, Official, Source, declare
from ..readers import decode_image, decoding, labels, listed, pickled, read_bytes, split_classes, two_files
from .notmnist import FORMATS, images_in

HOW_TO = (
    "it may not be passed on, so build it from ImageNet with https://github.com/yaoyao-liu/mini-imagenet-tools, "
    "resize to 84x84 and lay it out in the data folder as miniImageNet/<wnid>/*.jpg"
)


def _miniimagenet(folder: Path) -> Source | None:
    for place in (folder / "miniImageNet", folder / "miniimagenet", folder / "mini-imagenet", folder):
        pair = [place / "train.pkl", place / "test.pkl"]
        if any(f.exists() for f in pair):
            return Source(place=place, files=pair, read=partial(two_files, _mini_pickle, *pair))
        if place == folder or not place.is_dir():
            continue
        if (place / "train.csv").exists():
            tables = [place / f"{part}.csv" for part in ("train", "val", "test")]
            rows = [(place / "images" / r["filename"], r["label"]) for t in tables for r in _table(t, ("filename", "label"))]
            return _mini_source(place, sorted(rows, key=lambda row: (row[1], row[0].name)), tables, None)
        if (table := place / "split.csv").exists():
            lines = _table(table, ("filename", "label", "split"))
            for r in lines:
                if Path(r["filename"]).parent.name != r["label"] or r["split"] not in ("train", "test"):
                    raise UserError(
                        f"{table}: line for {r['filename']!r} says label {r['label']!r}, split {r['split']!r}",
                        "expected the label to be the image's folder and the split to be train or test",
                    )
            lines.sort(key=lambda r: r["filename"])
            rows = [(place / r["filename"], r["label"]) for r in lines]
            return _mini_source(place, rows, [table], np.array([r["split"] == "train" for r in lines]))
        wnids = sorted(f.name for f in listed(place) if f.is_dir() and re.fullmatch(r"n\d{8}", f.name))
        return _mini_source(place, [(file, file.parent.name) for file in images_in(place, wnids)], [], None)
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
        raise UserError(f"{place}: holds images of {len(wnids)} classes, miniImageNet has 100", HOW_TO)

    def read() -> tuple[Arrays, str]:
        x: np.ndarray = np.empty((len(rows), 84, 84, 3), np.uint8)
        for i, (file, _) in enumerate(rows):
            x[i] = decode_image(read_bytes(file), file, (84, 84), formats=FORMATS, exact=True)
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

    return Source(place=place, files=[*tables, *(file for file, _ in rows)], read=read)


def _table(file: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    with decoding(file, f"a CSV table with columns {', '.join(columns)}"):
        rows = list(csv.DictReader(io.StringIO(read_bytes(file).decode())))
        if not rows or any(row.get(c) in (None, "") for row in rows for c in columns):
            raise ValueError("a column or a value is missing")
        for row in rows:
            if not row["filename"].isprintable():  # no system takes a NUL in a path
                raise ValueError(f"{row['filename']!r} is no file name")
            if Path(row["filename"]).is_absolute() or ".." in Path(row["filename"]).parts:
                raise ValueError(f"{row['filename']} lies outside the data set's folder")
    return rows


def _mini_pickle(file: Path) -> tuple[np.ndarray, np.ndarray]:
    content = pickled(read_bytes(file), file, ("images", "labels"))
    images = content["images"]
    with decoding(file, "a pickle of 'images' and 'labels'"):
        x = images if isinstance(images, np.ndarray) else np.stack(images)
        if x.dtype != np.uint8 or x.shape[1:] != (84, 84, 3):
            raise ValueError(
                f"images are {x.dtype} of shape {x.shape}, expected uint8 (N, 84, 84, 3); resize them to 84x84 first"
            )
    return x, labels(content["labels"], 100, file, images=len(x))


declare(
    DataSet(
        name="miniimagenet",
        classes=100,
        reader=_miniimagenet,
        layouts="miniImageNet/ with <wnid>/*.jpg [and split.csv], with {train,val,test}.csv and images/, "
        "or with train.pkl and test.pkl",
        how_to=HOW_TO,  # the terms of ImageNet forbid redistribution
        official=Official(train=50_000, test=10_000, balanced=True),
    )
)
