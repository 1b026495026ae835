"""Every layout of every set is read; whatever is wrong with a file is one line that names it."""

import gzip
import hashlib
import io
import os
import pickle
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from benchsuite.data import datasets, get, load, sets, verify
from benchsuite.data.builtin import mnist, notmnist
from benchsuite.data.fetch import Remote
from benchsuite.errors import UserError

LETTERS = "ABCDEFGHIJ"
WNIDS = [f"n{10000000 + 7 * i}" for i in range(100)]


@pytest.fixture
def data(tmp_path, cache_dir):
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


@pytest.fixture
def official(monkeypatch):
    """official(distribution, **fields): what a complete set is to hold in this test."""

    def change(distribution, **fields):
        if distribution == "notmnist_small":
            monkeypatch.setattr(notmnist, "SMALL", replace(notmnist.SMALL, **fields))
            return
        known = datasets.get(distribution)
        new = replace(known, official=replace(known.official, **{"digest": None, "md5": None, **fields}))
        monkeypatch.setitem(datasets._known, distribution, new)

    return change


def refused(name, folder, **kwargs):
    """The message of the refusal: always one line, and the cache is left without an entry."""
    with pytest.raises(UserError) as error:
        load(name, folder, **kwargs)
    assert "\n" not in str(error.value)
    arrays = folder.parent / "cache" / "arrays" / name
    assert not arrays.exists() or not list(arrays.iterdir())
    return str(error.value)


def tar_of(folder, archive, prefix=""):
    """Pack the folder, and after it the names of its files once more in another folder, which is none of the set's."""
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, prefix + folder.name)
        for file in filter(Path.is_file, folder.iterdir()):
            tar.addfile(tarfile.TarInfo(f"elsewhere/{file.name}"))


def picture(seed=0, size=(28, 28), mode="L", kind="PNG"):
    rng = np.random.default_rng(seed)
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
    out = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(out, kind)
    return out.getvalue()


# ---- CIFAR


def write_cifar(folder, name, per_class=(2, 1)):
    """The batches of CIFAR-10 or -100 with numbered pixels; returns training and test pixels (N, 3072)."""
    classes, key, train, test = {
        "cifar10": (10, "labels", [f"data_batch_{i}" for i in range(1, 6)], "test_batch"),
        "cifar100": (100, "fine_labels", ["train"], "test"),
    }[name]
    place = folder / {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[name]
    place.mkdir(parents=True)
    pixels = []
    for part, files, n in (("train", train, per_class[0]), ("test", [test], per_class[1])):
        x = np.random.default_rng(len(part)).integers(0, 256, (classes * n, 3072), np.uint8)
        y = np.arange(classes * n) % classes
        for file, a, b in zip(files, np.array_split(x, len(files)), np.array_split(y, len(files)), strict=True):
            (place / file).write_bytes(pickle.dumps({b"data": a, key.encode(): b.tolist()}, protocol=2))
        pixels.append(x)
    return place, *pixels


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_folder_and_archive(data, official, name):
    place, train, test = write_cifar(data, name)
    classes = datasets.get(name).classes
    official(name, train=2 * classes, test=classes)
    s = load(name, data)
    assert (s.complete, s.note) == (True, "")
    assert s.train_x.shape == (2 * classes, 32, 32, 3)
    assert s.train_x[3, 1, 2].tolist() == train[3].reshape(3, 32, 32)[:, 1, 2].tolist()
    np.testing.assert_array_equal(s.test_x.transpose(0, 3, 1, 2).reshape(classes, -1), test)
    assert s.train_y.tolist() == [*range(classes)] * 2
    assert s.train_y.dtype == np.int64

    (data / "packed").mkdir()
    tar_of(place, data / "packed" / {"cifar10": "cifar-10-python.tar.gz", "cifar100": "cifar-100-python.tar.gz"}[name])
    assert load(name, data / "packed").digest == s.digest


def test_incomplete_set_needs_to_be_asked_for(data):
    write_cifar(data, "cifar10")
    message = refused("cifar10", data)
    assert message.startswith(f"cifar10: {data / 'cifar-10-batches-py'} holds 20 of 50,000 training and 10 of 10,000")
    assert "`benchsuite data get cifar10`" in message
    assert "--partial-data" in message
    s = load("cifar10", data, partial=True)
    assert not s.complete
    assert s.note == "20 of 50,000 training and 10 of 10,000 test images"


def test_right_counts_of_the_wrong_classes(data, official):
    place, *_ = write_cifar(data, "cifar10")
    official("cifar10", train=20, test=10)
    edit(place / "data_batch_1", lambda d: {**d, b"labels": [1, 1, 2, 3]})
    assert "unevenly over the classes" in refused("cifar10", data)
    assert "unevenly" in load("cifar10", data, partial=True).note


def test_class_without_images(data):
    place, *_ = write_cifar(data, "cifar10")
    edit(place / "test_batch", lambda d: {**d, b"labels": [0] * 10})
    assert "no test image of class 1" in refused("cifar10", data, partial=True)


def test_altered_pixels_of_a_complete_set(data, official, monkeypatch):
    place, *_ = write_cifar(data, "cifar10")
    official("cifar10", train=20, test=10)
    official("cifar10", train=20, test=10, digest=load("cifar10", data).digest)
    assert load("cifar10", data).complete
    edit(place / "test_batch", lambda d: {**d, b"data": d[b"data"] ^ 1})
    with pytest.raises(UserError, match="differ from the official set"):
        load("cifar10", data)


@pytest.mark.parametrize("name", ["cifar10", "svhn"])
def test_mislabelled_files_in_full_number(data, official, monkeypatch, name):
    if name == "cifar10":
        place, *_ = write_cifar(data, name)
        files = sorted(place.iterdir())
    else:
        write_svhn(data)
        files = sorted(data.iterdir())
    official(name, train=20, test=10, md5={file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in files})
    whole = load(name, data)
    assert (whole.complete, whole.note) == (True, "")
    if name == "cifar10":
        edit(files[0], lambda d: {**d, b"labels": d[b"labels"][::-1]})
    else:
        write_svhn(data, labels=lambda n: np.arange(n, dtype=np.uint8)[::-1, None] % 10 + 1)
    for _ in range(2):  # decoded first, from the cache then
        with pytest.raises(UserError, match=rf"^{name}: .*: files differ from the official ones; fetch .*--partial-data"):
            load(name, data)
        altered = load(name, data, partial=True)
        assert (altered.complete, altered.note) == (False, "files differ from the official ones")


def edit(file, change):
    file.write_bytes(pickle.dumps(change(pickle.loads(file.read_bytes())), protocol=2))


def edit_bytes(file, change):
    file.write_bytes(change(file.read_bytes()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: {**d, b"labels": [0, 1, 2]}, "has 3 labels for 4 images"),
        (lambda d: {**d, b"labels": [0, 1, 2, 10]}, "label 10 lies outside 0..9"),
        (lambda d: {**d, b"labels": [0, 1, 2, -1]}, "label -1 lies outside"),
        (lambda d: {**d, b"labels": [0, 1, 2, "x"]}, "labels are not whole numbers"),
        (lambda d: {**d, b"labels": [0, [1], 2, 3]}, "cannot be read as a list of labels"),
        (lambda d: {b"data": d[b"data"]}, "is not a dictionary with 'data' and 'labels'"),
        (lambda d: [d], "is not a dictionary"),
        (lambda d: {**d, b"data": d[b"data"][:, 1:]}, "'data' is not a uint8 array of shape (N, 3072)"),
        (lambda d: {**d, b"data": d[b"data"].astype(float)}, "'data' is not a uint8 array"),
        (lambda d: {**d, b"data": Path("x")}, "refused"),
    ],
)
def test_damaged_batch_is_named(data, change, message):
    place, *_ = write_cifar(data, "cifar10")
    edit(place / "data_batch_3", change)
    found = refused("cifar10", data, partial=True)
    assert f"{place / 'data_batch_3'}: " in found
    assert message in found


def test_truncated_and_missing_batches_are_named(data):
    place, *_ = write_cifar(data, "cifar10")
    edit_bytes(place / "data_batch_3", lambda raw: raw[: len(raw) // 2])
    assert f"{place / 'data_batch_3'}: is not a whole pickle" in refused("cifar10", data, partial=True)
    (place / "data_batch_3").unlink()
    assert f"{place / 'data_batch_3'}: cannot be read" in refused("cifar10", data, partial=True)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_truncated_archive_is_named(data, share):
    place, *_ = write_cifar(data, "cifar100")
    archive = data / "cifar-100-python.tar.gz"
    tar_of(place, archive)
    edit_bytes(archive, lambda raw: raw[: int(len(raw) * share)])
    assert f"{archive}: cannot be read as a tar.gz archive" in refused("cifar100", data, partial=True)


def test_archive_without_a_batch(data):
    place, *_ = write_cifar(data, "cifar10")
    (place / "data_batch_4").unlink()
    tar_of(place, data / "cifar-10-python.tar.gz")
    assert "holds no cifar-10-batches-py/data_batch_4" in refused("cifar10", data, partial=True)


def test_archives_are_never_extracted(data):
    """Members are read in memory: a name that leads out of the folder writes nothing."""
    place, *_ = write_cifar(data / "in", "cifar10")
    tar_of(place, data / "cifar-10-python.tar.gz", prefix="../../../")
    before = sorted(data.parent.rglob("*batch*"))
    load("cifar10", data, partial=True)
    assert sorted(data.parent.rglob("*batch*")) == before


# ---- MNIST


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(("name", "place"), [("mnist", "MNIST/raw"), ("mnist", "mnist"), ("fashion_mnist", "FashionMNIST")])
def test_mnist_layouts(data, official, write_mnist, name, place, zipped):
    train, test = write_mnist(data / place, zipped)
    official(name, train=20, test=10)
    s = load(name, data)
    np.testing.assert_array_equal(s.train_x[..., 0], train)
    np.testing.assert_array_equal(s.test_x[..., 0], test)
    assert s.train_y.tolist() == [*range(10)] * 2
    assert s.complete


def test_mnist_and_fashion_are_not_confused(data, write_mnist):
    write_mnist(data / "FashionMNIST" / "raw")
    assert "mnist not found" in refused("mnist", data)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("train-images-idx3-ubyte", lambda r: b"\0\0\x08\x01" + r[4:], "magic number 2049, expected 2051"),
        ("train-images-idx3-ubyte", lambda r: r[:-1], "15,695 bytes, its header says 15,696"),
        ("train-images-idx3-ubyte", lambda r: r + b"x", "15,697 bytes, its header says 15,696"),
        ("train-images-idx3-ubyte", lambda r: r[:6], "cannot be read as an idx file"),
        (
            "t10k-images-idx3-ubyte",
            lambda r: r[:8] + r[8:12][:3] + b"\x0e" + r[12:15] + b"\x38" + r[16:],
            "14x56, expected 28x28",
        ),
        ("t10k-labels-idx1-ubyte", lambda r: r[:-1] + b"\x0a", "label 10 lies outside 0..9"),
        ("t10k-labels-idx1-ubyte", lambda r: r[:7] + b"\x09" + r[8:-1], "has 9 labels for 10 images"),
    ],
)
def test_damaged_idx_file_is_named(data, write_mnist, file, change, message):
    write_mnist(data / "MNIST", zipped=False)
    edit_bytes(data / "MNIST" / file, change)
    found = refused("mnist", data, partial=True)
    assert f"{data / 'MNIST' / file}: " in found
    assert message in found


@pytest.mark.parametrize("change", [lambda r: r[:-20], lambda r: r[:60] + b"xx" + r[62:], lambda r: b"", lambda r: b"<html>"])
def test_damaged_gzip_file_is_named(data, write_mnist, change):
    write_mnist(data / "MNIST")
    file = data / "MNIST" / "train-images-idx3-ubyte.gz"
    edit_bytes(file, change)
    assert f"{file}: cannot be read as " in refused("mnist", data, partial=True)


def test_missing_idx_file_is_named(data, write_mnist):
    write_mnist(data / "MNIST")
    (data / "MNIST" / "t10k-labels-idx1-ubyte.gz").unlink()
    assert f"{data / 'MNIST' / 't10k-labels-idx1-ubyte'}: cannot be read" in refused("mnist", data, partial=True)


# ---- SVHN


def write_svhn(place, labels=None, **fields):
    place.mkdir(parents=True, exist_ok=True)
    for part, n in (("train", 20), ("test", 10)):
        x = np.random.default_rng(n).integers(0, 256, (32, 32, 3, n), np.uint8)
        y = np.arange(n, dtype=np.uint8)[:, None] % 10 + 1 if labels is None else labels(n)
        savemat(place / f"{part}_32x32.mat", {"X": x, "y": y, **fields})
    return x


@pytest.mark.parametrize("place", [".", "svhn", "SVHN"])
def test_svhn(data, official, place):
    x = write_svhn(data / place)
    official("svhn", train=20, test=10)
    s = load("svhn", data)
    assert s.complete
    np.testing.assert_array_equal(s.test_x, x.transpose(3, 0, 1, 2))
    assert s.test_y.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0], "label 10 is the digit 0"


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"labels": lambda n: np.arange(n, dtype=np.uint8)[:, None] % 10}, "label 0 lies outside 1..10"),
        ({"labels": lambda n: np.full((n, 1), 11, np.uint8)}, "label 11 lies outside"),
        ({"labels": lambda n: np.ones((n - 1, 1), np.uint8)}, "has 19 labels for 20 images"),
        ({"X": np.zeros((32, 32, 3, 20))}, "X is float64"),
        ({"X": np.zeros((20, 32, 32, 3), np.uint8)}, "of shape (20, 32, 32, 3)"),
    ],
)
def test_damaged_svhn_is_named(data, kwargs, message):
    write_svhn(data, **kwargs)
    found = refused("svhn", data, partial=True)
    assert f"{data / 'train_32x32.mat'}: " in found
    assert message in found


@pytest.mark.parametrize("cut", [0, 100, 30_000])
def test_truncated_svhn_is_named(data, cut):
    write_svhn(data)
    edit_bytes(data / "test_32x32.mat", lambda raw: raw[:cut])
    assert f"{data / 'test_32x32.mat'}: cannot be read as a MATLAB file" in refused("svhn", data, partial=True)


# ---- notMNIST


def write_letters(place, n, start=0):
    for i, letter in enumerate(LETTERS):
        (place / letter).mkdir(parents=True)
        for k in range(n):
            (place / letter / f"{k:03}.png").write_bytes(picture(start + i * n + k))


def write_acl(place):
    write_letters(place / "Train", 3)
    write_letters(place / "Test", 1, start=1000)


def test_acl_notmnist_of_a_wrong_number_is_never_complete(data):
    write_acl(data / "notMNIST")
    assert "holds 10 test images, which is no multiple of 153" in refused("notmnist", data)
    part = load("notmnist", data, partial=True)
    assert not part.complete
    assert "no multiple of 153" in part.note


def test_acl_notmnist_folder_and_zip(data, official):
    official("notmnist", test_multiple=10)
    write_acl(data / "notMNIST")
    (data / "notMNIST" / "Train" / "A" / "._000.png").write_bytes(b"left by an operating system")
    s = load("notmnist", data)
    assert (s.complete, s.note) == (True, "")
    assert s.train_x.shape == (30, 28, 28, 1)
    assert s.train_y.tolist() == sorted([*range(10)] * 3)
    np.testing.assert_array_equal(s.test_x[4, ..., 0], np.asarray(Image.open(io.BytesIO(picture(1004)))))

    (data / "packed").mkdir()
    with zipfile.ZipFile(data / "packed" / "notMNIST.zip", "w") as z:
        for file in sorted((data / "notMNIST").rglob("*.png"), reverse=True):
            z.write(file, file.relative_to(data))
        z.writestr("__MACOSX/notMNIST/Train/A/x.png", b"")
    packed = load("notmnist", data / "packed")
    assert (packed.digest, packed.note) == (s.digest, "")


def test_notmnist_small_is_a_substitute_with_a_fixed_split(data, official):
    place = data / "notMNIST_small"
    write_letters(place, 25)
    official("notmnist_small", train=230, test=20)
    s = load("notmnist", data)
    assert not s.complete
    assert s.note == "notMNIST_small with a fixed 90/10 split in place of the ACL archive"
    assert np.bincount(s.test_y).tolist() == [2] * 10
    assert np.bincount(s.train_y).tolist() == [23] * 10
    together = {x.tobytes() for x in np.concatenate([s.train_x, s.test_x])}
    assert len(together) == 250, "no image is in both parts or in neither"

    (data / "packed").mkdir()
    tar_of(place, data / "packed" / "notMNIST_small.tar.gz")
    assert load("notmnist", data / "packed").digest == s.digest

    (data / "both").mkdir()
    os.rename(place, data / "both" / "notMNIST_small")
    official("notmnist", test_multiple=10)
    write_acl(data / "both" / "notMNIST")
    assert load("notmnist", data / "both").complete, "the archive of the published runs goes first"


def test_unreadable_letters_are_skipped_and_counted(data, official):
    official("notmnist", test_multiple=10)
    write_acl(data / "notMNIST")
    train = data / "notMNIST" / "Train"
    (train / "A" / "000.png").write_bytes(b"")
    edit_bytes(train / "F" / "001.png", lambda raw: raw[:200])
    s = load("notmnist", data)
    assert s.note == "2 unreadable images skipped"
    assert np.bincount(s.train_y).tolist() == [2, 3, 3, 3, 3, 2, 3, 3, 3, 3]


def test_more_than_five_unreadable_letters_are_an_error(data):
    write_acl(data / "notMNIST")
    for letter in "ABCDEF":
        (data / "notMNIST" / "Train" / letter / "000.png").write_bytes(b"")
    found = refused("notmnist", data)
    assert f"{data / 'notMNIST' / 'Train' / 'F' / '000.png'}: " in found
    assert "more than 5" in found


def test_notmnist_errors(data):
    write_acl(data / "notMNIST")
    (data / "notMNIST" / "Train" / "B" / "001.png").write_bytes(picture(size=(27, 28)))
    assert f"{data / 'notMNIST' / 'Train' / 'B' / '001.png'}: is 27x28, expected 28x28" in refused("notmnist", data)
    (data / "notMNIST" / "Test" / "C" / "000.png").unlink()
    (data / "notMNIST" / "Train" / "B" / "001.png").unlink()
    assert "no readable image in Test/C" in refused("notmnist", data)
    (data / "notMNIST" / "Test" / "C").rmdir()
    assert f"{data / 'notMNIST'}: has no folder Test/C" in refused("notmnist", data)
    (data / "notMNIST.zip").write_bytes(b"PK\x03\x04 cut")
    assert f"{data / 'notMNIST.zip'}: cannot be read as a zip archive" in refused("notmnist", data)


# ---- miniImageNet


def write_mini(place, n=6, kind="PNG"):
    """n images of each of 100 classes; a pixel's value tells its class and its number."""
    for c, wnid in enumerate(WNIDS):
        (place / wnid).mkdir(parents=True)
        for k in range(n):
            Image.new("RGB", (84, 84), (c, k, 7)).save(place / wnid / f"{wnid}{k:08}.{kind.lower()}", kind)


def numbers(x):
    """(class, number) of each image that write_mini made."""
    return [tuple(int(v) for v in image[40, 40, :2]) for image in x]


@pytest.mark.parametrize("folder", ["miniImageNet", "miniimagenet", "mini-imagenet"])
def test_mini_class_folders_follow_acls_split(data, official, folder):
    write_mini(data / folder)
    official("miniimagenet", train=500, test=100)
    s = load("miniimagenet", data)
    assert s.complete
    assert s.train_y.tolist() == [c for c, _ in numbers(s.train_x)], "classes are numbered by sorted WordNet id"
    rng = np.random.RandomState(1234)  # as ACL does it: lists of images, shuffled class after class
    train, test = [], []
    for c in range(100):
        images = [(c, k) for k in range(6)]
        rng.shuffle(images)
        train += sorted(tuple(v) for v in images[:5])
        test += [tuple(v) for v in images[5:]]
    assert numbers(s.train_x) == train
    assert numbers(s.test_x) == test


def test_mini_split_table_decides(data):
    place = data / "miniImageNet"
    write_mini(place, 3)
    rows = [f"{w}/{w}{k:08}.png,{w},{'test' if k == 1 else 'train'}" for w in WNIDS for k in range(3)]
    (place / "split.csv").write_text("\n".join(["filename,label,split", *reversed(rows)]) + "\n")
    s = load("miniimagenet", data, partial=True)
    assert not s.complete
    assert numbers(s.test_x) == [(c, 1) for c in range(100)]
    assert numbers(s.train_x) == [(c, k) for c in range(100) for k in (0, 2)]
    assert s.note == "split by its own table; 200 of 50,000 training and 100 of 10,000 test images"

    for line, message in (
        (f"{WNIDS[1]}/{WNIDS[1]}00000000.png,{WNIDS[0]},train", "says label"),
        (f"{WNIDS[1]}/{WNIDS[1]}00000000.png,{WNIDS[1]},val", "split 'val'"),
        (f"{WNIDS[1]}/none.png,{WNIDS[1]},train", f"{place / WNIDS[1] / 'none.png'}: cannot be read"),
        (f"../{WNIDS[1]}/none.png,{WNIDS[1]},train", "lies outside"),
        (f"{WNIDS[1]}/none.png,{WNIDS[1]}", "a column or a value is missing"),
        (f"{WNIDS[1]}/no\0ne.png,{WNIDS[1]},train", "is no file name"),
        (f'{WNIDS[1]}/"none.png,{WNIDS[1]},train', "cannot be read"),
        (f'"{"x" * 200_000}",{WNIDS[1]},train', "field larger than field limit"),
        (rows[0], "is listed 2 times"),
    ):
        (place / "split.csv").write_text("\n".join(["filename,label,split", *rows, line]) + "\n")
        with pytest.raises(UserError) as error:
            load("miniimagenet", data, partial=True)
        assert message in str(error.value)
        assert "\n" not in str(error.value)


def test_mini_ravi_larochelle(data, official):
    write_mini(data / "classes")
    place = data / "miniImageNet"
    (place / "images").mkdir(parents=True)
    for file in (data / "classes").rglob("*.png"):
        os.rename(file, place / "images" / file.name)
    shuffled = np.random.default_rng(0).permutation(WNIDS)
    for part, wnids in (("train", shuffled[:64]), ("val", shuffled[64:80]), ("test", shuffled[80:])):
        rows = [f"{w}{k:08}.png,{w}" for w in wnids for k in range(6)]
        (place / f"{part}.csv").write_text("\n".join(["filename,label", *rows]) + "\n")
    official("miniimagenet", train=500, test=100)
    s = load("miniimagenet", data)
    write_mini(data / "other" / "miniImageNet")
    assert s.digest == load("miniimagenet", data / "other").digest, "the same images in either layout"

    text = (place / "val.csv").read_text()
    (place / "val.csv").write_text(text.replace(f",{shuffled[64]}", f",{shuffled[65]}"))
    with pytest.raises(UserError, match="its name says"):
        load("miniimagenet", data)
    (place / "val.csv").unlink()
    with pytest.raises(UserError, match=r"val\.csv: cannot be read"):
        load("miniimagenet", data)


@pytest.mark.parametrize("place", [".", "miniImageNet"])
@pytest.mark.parametrize("as_list", [True, False])
def test_mini_pickles(data, official, place, as_list):
    (data / place).mkdir(exist_ok=True)
    x = np.random.default_rng(0).integers(0, 256, (200, 84, 84, 3), np.uint8)
    y = np.arange(200) % 100
    for part, n in (("train", 200), ("test", 100)):
        content = {"images": list(x[:n]) if as_list else x[:n], "labels": y[:n].tolist() if as_list else y[:n]}
        (data / place / f"{part}.pkl").write_bytes(pickle.dumps(content))
    official("miniimagenet", train=200, test=100)
    s = load("miniimagenet", data)
    assert (s.complete, s.note) == (True, "")
    np.testing.assert_array_equal(s.train_x, x)
    assert s.test_y.tolist() == [*range(100)]

    (data / place / "test.pkl").write_bytes(pickle.dumps({"images": x[:4, :80], "labels": [0] * 4}))
    with pytest.raises(UserError, match=r"test\.pkl: .*resize them to 84x84 first"):
        load("miniimagenet", data)
    (data / place / "test.pkl").write_bytes(pickle.dumps({"images": x[:4], "labels": [0, 1, 2, 100]}))
    with pytest.raises(UserError, match=r"test\.pkl: label 100 lies outside 0\.\.99"):
        load("miniimagenet", data)
    (data / place / "test.pkl").unlink()
    with pytest.raises(UserError, match=r"test\.pkl: cannot be read"):
        load("miniimagenet", data)


def test_mini_errors(data):
    place = data / "miniImageNet"
    write_mini(place, 2, kind="JPEG")
    file = place / WNIDS[50] / f"{WNIDS[50]}00000001.jpeg"
    edit_bytes(file, lambda raw: raw[: len(raw) - 40])
    assert f"{file}: cannot be read as an image" in refused("miniimagenet", data, partial=True)
    file.write_bytes(picture(size=(500, 375), mode="RGB", kind="JPEG"))
    assert f"{file}: is 500x375, expected 84x84; resize" in refused("miniimagenet", data, partial=True)
    for left in (place / WNIDS[50]).iterdir():
        left.unlink()
    assert "holds images of 99 classes, miniImageNet has 100" in refused("miniimagenet", data, partial=True)


# ---- digits


def test_digits_need_no_files(tmp_path):
    s = load("digits", tmp_path / "nowhere")
    assert (s.complete, s.note) == (True, "")
    assert s.train_x.shape == (1195, 8, 8, 1)
    assert s.test_x.shape == (602, 8, 8, 1)
    assert set(np.unique(s.train_x).tolist()) <= {int(np.rint(v * 255 / 16)) for v in range(17)}
    assert s.train_x.max() == 255
    whole, parts = np.bincount(np.concatenate([s.train_y, s.test_y])), np.bincount(s.train_y)
    assert parts.tolist() == (whole * 2 // 3).tolist()
    assert not s.train_x.flags.writeable
    assert verify("digits").digest == s.digest == datasets.get("digits").official.digest


# ---- missing sets and `get`


@pytest.mark.parametrize("name", sorted({*datasets.all()} - {"digits"}))
def test_missing_set(data, name):
    message = refused(name, data)
    assert message.startswith(f"{name} not found in {data} (looked for {datasets.get(name).layouts})")
    assert ("mini-imagenet-tools" if name == "miniimagenet" else f"`benchsuite data get {name}`") in message


def test_missing_is_told_from_damaged(data):
    with pytest.raises(sets.MissingData):
        load("svhn", data, partial=True)
    write_svhn(data)
    (data / "test_32x32.mat").unlink()
    with pytest.raises(UserError) as error:
        load("svhn", data, partial=True)
    assert not isinstance(error.value, sets.MissingData)


def test_unknown_set(data):
    with pytest.raises(UserError, match="no data set is called 'cifar'; did you mean 'cifar10'"):
        load("cifar", data)


def test_get_what_may_not_be_passed_on(data):
    with pytest.raises(UserError, match=r"miniimagenet cannot be fetched: .*mini-imagenet-tools"):
        get("miniimagenet", data)


def fetched_from(name, files, monkeypatch):
    form = tuple(Remote((f.as_uri(),), f"MNIST/raw/{f.name}") for f in files)
    monkeypatch.setitem(datasets._known, name, replace(datasets.get(name), fetch=(form,)))


def test_get_fetches_verifies_and_is_content(data, official, monkeypatch, write_mnist):
    official("mnist", train=20, test=10)
    write_mnist(data / "server")
    files = sorted((data / "server").iterdir())
    fetched_from("mnist", files, monkeypatch)
    said = []
    get("mnist", data, said.append)
    assert said[-1] == f"mnist: verified in {data}"
    assert load("mnist", data).complete
    monkeypatch.setattr("benchsuite.data.fetch.download", None)
    get("mnist", data, said.append)
    assert said[-1] == f"mnist: already in {data}"
    get("digits", data, said.append)
    assert "nothing to fetch" in said[-1]


def test_get_replaces_what_is_damaged(data, official, monkeypatch, write_mnist):
    official("mnist", train=20, test=10)
    write_mnist(data / "server")
    write_mnist(data / "MNIST" / "raw", zipped=False)
    edit_bytes(data / "MNIST" / "raw" / "train-images-idx3-ubyte", lambda raw: raw[:100])
    fetched_from("mnist", sorted((data / "server").iterdir()), monkeypatch)
    said = []
    get("mnist", data, said.append)
    assert any("cannot be read as an idx file" in line for line in said)
    assert load("mnist", data).complete


def test_known_bytes_of_idx(tmp_path):
    """The reader against the format's own description, not against our writer."""
    file = tmp_path / "x.gz"
    file.write_bytes(gzip.compress(bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 2, 9, 8, 7, 6])))
    assert mnist.idx(file, 3).tolist() == [[[9, 8], [7, 6]]]


# ---- real files


REAL = os.environ.get("BENCHSUITE_TEST_DATA")


@pytest.mark.skipif(not REAL, reason="BENCHSUITE_TEST_DATA names no folder with the real sets")
@pytest.mark.parametrize("name", sorted({*datasets.all()} - {"digits"}))
def test_real_files(cache_dir, name):
    folder = Path(REAL)
    if datasets.get(name).reader(folder) is None:
        pytest.skip(f"{name} is not in {folder}")
    s = load(name, folder, partial=True)
    official = datasets.get(name).official
    assert set(np.unique(s.train_y)) == set(np.unique(s.test_y)) == set(range(datasets.get(name).classes))
    assert s.digest == verify(name, folder, partial=True).digest
    if s.complete and official.digest:
        assert s.digest == official.digest
    if name == "cifar100" and s.complete:
        mean = np.asarray(s.train_x).mean((0, 1, 2)) / 255
        np.testing.assert_allclose(mean, (0.50707516, 0.48654887, 0.44091784), atol=1e-7)
