"""Data sets of one's own: declared in a file, read by the readers that come along, never run, never taken for official ones."""

import errno
import io
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from benchsuite.data import (
    AnyOf,
    DataSet,
    ImageFolder,
    Npz,
    Official,
    Parquet,
    Remote,
    Source,
    Torchvision,
    cache,
    datasets,
    declare,
    get,
    load,
    sets,
)
from benchsuite.errors import UserError

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.fixture
def own(cache_dir, monkeypatch):
    """own(reader, classes=2, **more): a data set called `own`, declared anew; forgotten after the test."""
    monkeypatch.setattr(datasets, "_known", dict(datasets.all()))
    monkeypatch.setattr(datasets, "_origins", dict(datasets._origins))

    def make(reader, classes=2, name="own", **more):
        datasets._known.pop(name, None)
        return declare(DataSet(name=name, classes=classes, reader=reader, **more))

    return make


def encoded(seed=0, size=(8, 8), mode="RGB", kind="PNG", **more):
    rng = np.random.default_rng(seed)
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], len(mode))
    out = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, shape, np.uint8), mode).save(out, kind, **more)
    return out.getvalue()


def photos(place, counts, ending="png", **more):
    """Folders of images: counts[class] of each."""
    for number, (name, n) in enumerate(counts.items()):
        (place / name).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            (place / name / f"{i}.{ending}").write_bytes(encoded(100 * number + i, **more))
    return place


def reason(name, folder, **more):
    with pytest.raises(UserError) as error:
        load(name, folder, **more)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- folders of images


def test_two_folders_of_images(own, tmp_path):
    photos(tmp_path / "train", {"b": 3, "a": 2})
    photos(tmp_path / "test", {"a": 1, "b": 1})
    (tmp_path / "train" / "a" / "notes.txt").write_text("x")
    (tmp_path / "train" / "a" / "._0.png").write_text("left by an operating system")
    own(ImageFolder())
    s = load("own", tmp_path)
    assert (s.train_y.tolist(), s.test_y.tolist()) == ([0, 0, 1, 1, 1], [0, 1])
    first = np.asarray(Image.open(tmp_path / "train" / "a" / "0.png"))
    np.testing.assert_array_equal(s.train_x[0], first)
    assert (s.complete, s.own) == (True, True)
    assert s.note == "1 file left out that is no image (.txt)"


def test_one_folder_is_split_by_class_and_seed(own, tmp_path):
    photos(tmp_path, {"a": 10, "b": 5, "c": 1 + 1})
    own(ImageFolder(), classes=3)
    s = load("own", tmp_path)
    assert np.bincount(s.test_y).tolist() == [2, 1, 1], "a fifth of each class, at least one"
    assert np.bincount(s.train_y).tolist() == [8, 4, 1]
    assert len({x.tobytes() for x in (*s.train_x, *s.test_x)}) == 17
    own(ImageFolder(seed=1), classes=3)
    assert load("own", tmp_path).digest != s.digest
    own(ImageFolder(), classes=3)
    assert load("own", tmp_path).digest == s.digest


@pytest.mark.parametrize(("size", "mode", "shape"), [(4, "RGB", (4, 4, 3)), ((4, 6), "L", (4, 6, 1)), (16, "L", (16, 16, 1))])
def test_images_of_any_size_are_brought_to_one(own, tmp_path, size, mode, shape):
    photos(tmp_path, {"a": 2}, size=(12, 9), ending="jpg", kind="JPEG")
    photos(tmp_path, {"b": 2}, size=(7, 20))
    own(ImageFolder(size=size, mode=mode))
    assert load("own", tmp_path).train_x.shape[1:] == shape
    own(ImageFolder())
    assert "images of several sizes (12x9, then 7x20" in reason("own", tmp_path)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_grey_values_of_16_bits_keep_their_upper_8_and_more_bits_are_refused(own, tmp_path, mode):
    values = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    for name in "ab":
        (tmp_path / name).mkdir()
        for i, ending in enumerate(("png", "tif")):
            Image.fromarray(values).save(tmp_path / name / f"{i}.{ending}")
    own(ImageFolder(mode=mode))
    images = load("own", tmp_path)
    for pixels in (images.train_x, images.test_x):
        np.testing.assert_array_equal(pixels, np.broadcast_to((values >> 8)[None, ..., None], pixels.shape))
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "a" / "2.tif")
    assert "2.tif: has grey values of 32 bits, and nothing says their range; save it" in reason("own", tmp_path)


def test_an_image_is_scaled_to_cover_and_cut_around_its_centre_as_its_camera_says(own, tmp_path):
    """Left half black, right half white, twice as wide as high: the middle square has both."""
    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, 8:] = 255
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(2):
            exif = Image.Exif()
            exif[0x0112] = 3 if name == "b" else 1  # turned by 180 degrees
            Image.fromarray(wide).save(tmp_path / name / f"{i}.jpg", quality=100, exif=exif)
    own(ImageFolder(size=8))
    upright, turned = load("own", tmp_path).train_x[..., 0]
    assert upright[:, :3].max() < 40
    assert upright[:, 5:].min() > 215
    assert turned[:, :3].min() > 215


def test_a_palette_with_transparency_is_read_without_a_warning(own, tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(2):
            image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) + i).convert("P")
            image.save(tmp_path / name / f"{i}.png", transparency=b"\x00\x80\xff")
    own(ImageFolder())
    assert load("own", tmp_path).train_x.shape == (2, 8, 8, 3)


def test_the_settings_of_a_reader_are_part_of_what_is_cached(own, tmp_path):
    photos(tmp_path, {"a": 2, "b": 2})
    for size in (4, 6, 4):
        own(ImageFolder(size=size))
        assert load("own", tmp_path).train_x.shape[1] == size


def test_what_is_wrong_with_a_folder_is_one_line(own, tmp_path):
    own(ImageFolder())
    assert f"own not found in {tmp_path} (looked for train/<class>/*.jpg" in reason("own", tmp_path)
    photos(tmp_path / "x", {"a": 2, "b": 2, "c": 2})
    assert "has training images of class 2, but own has classes 0..1" in reason("own", tmp_path / "x")
    own(ImageFolder(), classes=4)
    assert "has no training image of class 3" in reason("own", tmp_path / "x")
    own(ImageFolder(), classes=3)
    photos(tmp_path / "y" / "train", {"a": 1, "b": 1})
    photos(tmp_path / "y" / "test", {"a": 1})
    assert f"{tmp_path / 'y' / 'test'}: has no folder b" in reason("own", tmp_path / "y")
    (tmp_path / "x" / "a" / "0.png").write_bytes(b"no image")
    assert f"{tmp_path / 'x' / 'a' / '0.png'}: cannot be read as an image" in reason("own", tmp_path / "x")
    assert not list((tmp_path / "cache" / "arrays" / "own").iterdir())


# ---- what data files must not do


@pytest.mark.parametrize("name", ["own", "notmnist", "miniimagenet"])
def test_postscript_in_an_image_file_is_not_given_to_ghostscript(own, tmp_path, name, monkeypatch):
    from PIL import EpsImagePlugin

    started = []
    monkeypatch.setattr(
        EpsImagePlugin, "Ghostscript", lambda *words, **more: started.append(words) or Image.new("RGB", (8, 8)).im
    )
    if name == "own":
        own(ImageFolder(size=8))
        folder = photos(tmp_path / "data", {"a": 2, "b": 2})
        (folder / "a" / "0.png").write_bytes(EPS)
    elif name == "notmnist":
        folder = tmp_path / "data"
        photos(folder / "notMNIST_small", dict.fromkeys("ABCDEFGHIJ", 10), size=(28, 28), mode="L")
        for letter in "ABCDEF":
            (folder / "notMNIST_small" / letter / "0.png").write_bytes(EPS)
    else:
        folder = tmp_path / "data"
        photos(folder / "miniImageNet", {f"n{i:08}": 2 for i in range(100)}, size=(84, 84))
        (folder / "miniImageNet" / "n00000000" / "0.png").write_bytes(EPS)
    said = reason(name, folder, partial=name != "own")
    assert "cannot be read as an image (it is none of " in said
    assert "BytesIO" not in said
    assert started == []
    Image.open(io.BytesIO(EPS)).load()  # control: Pillow would
    assert len(started) == 1


def test_a_named_pipe_in_place_of_a_data_file_is_refused(own, tmp_path):
    """A reader would wait for it for ever."""
    photos(tmp_path, {"a": 2, "b": 2})
    (tmp_path / "a" / "0.png").unlink()
    os.mkfifo(tmp_path / "a" / "0.png")
    own(ImageFolder())
    assert f"{tmp_path / 'a' / '0.png'}: is not an ordinary file" in reason("own", tmp_path)
    os.mkfifo(tmp_path / "cifar-10-python.tar.gz")
    assert "cifar-10-python.tar.gz: is not an ordinary file" in reason("cifar10", tmp_path)
    (tmp_path / "miniImageNet").mkdir()
    os.mkfifo(tmp_path / "miniImageNet" / "split.csv")
    assert "split.csv: is not an ordinary file" in reason("miniimagenet", tmp_path)


@pytest.mark.parametrize("name", ["own", "parquet", "torchvision", "miniimagenet", "notmnist"])
def test_a_folder_that_cannot_be_read_is_named_and_not_passed_over(name, own, tmp_path, monkeypatch):
    own(Parquet() if name == "parquet" else Torchvision("MNIST") if name == "torchvision" else ImageFolder())
    hidden = tmp_path / {"own": "a", "parquet": "data", "torchvision": "MNIST/raw"}.get(name, name)
    if name == "miniimagenet":
        photos(hidden := tmp_path / "miniImageNet", {f"n{i:08}": 2 for i in range(100)}, size=(84, 84))
    elif name == "notmnist":
        photos(tmp_path / "notMNIST_small", dict.fromkeys("ABCDEFGHIJ", 2))
        hidden = tmp_path / "notMNIST_small" / "C"
    else:
        photos(tmp_path, {"a": 2, "b": 2})
        hidden.mkdir(parents=True, exist_ok=True)
    for look in (os.listdir, os.scandir):

        def refusing(path=".", look=look):
            if Path(path) == hidden:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return look(path)

        monkeypatch.setattr(os, look.__name__, refusing)
    said = reason(name if name in ("miniimagenet", "notmnist") else "own", tmp_path, partial=True)
    assert f"{hidden}: cannot be read: Permission denied" in said


def test_a_very_large_image_is_read_without_a_warning_and_a_larger_one_refused(own, tmp_path, monkeypatch):
    photos(tmp_path, {"a": 2, "b": 2})
    own(ImageFolder())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)  # 64 are more than twice as many
    assert "cannot be read as an image (Image size (64 pixels) exceeds limit" in reason("own", tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    assert load("own", tmp_path).train_y.tolist() == [0, 1]


def test_names_of_files_need_not_be_utf8(own, tmp_path, capsys):
    photos(tmp_path, {"a": 2, "b": 2})
    os.rename(tmp_path / "a" / "0.png", os.fsencode(tmp_path / "a") + b"/\xff\xfe.png")
    os.rename(tmp_path / "b", os.fsencode(tmp_path) + b"/b\xe9")
    (tmp_path / "a" / os.fsdecode(b"\xff")).touch()
    own(ImageFolder())
    assert load("own", tmp_path).train_y.tolist() == [0, 1]
    print(load("own", tmp_path).note)
    (tmp_path / "a" / os.fsdecode(b"\xff\xfe.png")).write_bytes(b"")
    print(reason("own", tmp_path))
    assert "\\udcff" in capsys.readouterr().out


# ---- npz


def test_arrays_in_one_file(own, tmp_path):
    x, y = np.random.default_rng(0).integers(0, 256, (6, 5, 4), np.uint8), np.array([0, 1] * 3)
    np.savez(tmp_path / "one.npz", x_train=x[:4], y_train=y[:4], x_test=x[4:], y_test=y[4:])
    own(Npz("one.npz"))
    s = load("own", tmp_path)
    np.testing.assert_array_equal(s.train_x[..., 0], x[:4])
    assert s.test_y.tolist() == [0, 1]
    np.savez(tmp_path / "other.npz", images=x, labels=y)
    own(Npz("other.npz", train=("images", "labels"), test=None, test_share=1 / 3))
    assert sorted(load("own", tmp_path).test_y.tolist()) == [0, 1]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"x_train": np.zeros((4, 5, 4))}, "x_train is float64 of shape (4, 5, 4), expected uint8"),
        ({"y_train": np.zeros(3, int)}, "3 labels for 4 images"),
        ({"y_train": np.zeros(4)}, "labels are not whole numbers"),
        ({"x_test": None}, "no array 'x_test', but "),
        ({"x_train": np.array([{}] * 4, object)}, "allow_pickle=False"),
    ],
)
def test_what_is_wrong_with_an_npz_file_is_one_line(own, tmp_path, changed, words):
    x, y = np.zeros((4, 5, 4), np.uint8), np.array([0, 1, 0, 1])
    content = {"x_train": x, "y_train": y, "x_test": x, "y_test": y, **changed}
    np.savez(tmp_path / "one.npz", **{k: v for k, v in content.items() if v is not None})
    own(Npz("one.npz"))
    found = reason("own", tmp_path)
    assert f"{tmp_path / 'one.npz'}: cannot be read as an .npz file" in found
    assert words in found


# ---- parquet


def table(file, images, labels, names=("img", "fine_label"), struct=True):
    file.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": raw, "path": None} for raw in images] if struct else images
    parquet.write_table(pa.table({names[0]: images, names[1]: labels}), file)


def test_tables_of_the_hub(own, tmp_path):
    raw = [encoded(i) for i in range(6)]
    table(tmp_path / "data" / "train-00000-of-00002.parquet", raw[:2], [0, 1], ("image", "label"))
    table(tmp_path / "data" / "train-00001-of-00002.parquet", raw[2:4], [1, 0], ("image", "label"), struct=False)
    table(tmp_path / "data" / "test-00000-of-00001.parquet", raw[4:], [0, 1], ("image", "label"))
    own(Parquet())
    s = load("own", tmp_path)
    assert s.train_y.tolist() == [0, 1, 1, 0]
    np.testing.assert_array_equal(s.train_x[3], np.asarray(Image.open(io.BytesIO(raw[3]))))
    own(Parquet(label="labels"))
    assert "it has no column 'labels', but 'image', 'label'" in reason("own", tmp_path)
    table(tmp_path / "data" / "test-00000-of-00001.parquet", [EPS, EPS], [0, 1], ("image", "label"))
    own(Parquet())
    assert "cannot be read as an image" in reason("own", tmp_path)


def test_cifar100_in_either_form_is_one_set(tmp_path, cache_dir, monkeypatch):
    """The second form stands in for the first, wherever it is fetched from; the digest of the pixels tells whether it may."""
    from test_data_sets import write_cifar

    _, train, test = write_cifar(tmp_path / "one", "cifar100")
    for part, x, n in (("train", train, 2), ("test", test, 1)):
        raw = []
        for pixels in x.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1):
            out = io.BytesIO()
            Image.fromarray(pixels).save(out, "PNG")
            raw.append(out.getvalue())
        table(tmp_path / "server" / f"{part}-00000-of-00001.parquet", raw, (np.arange(100 * n) % 100).tolist())
    known = datasets.get("cifar100")
    digest = load("cifar100", tmp_path / "one", partial=True).digest
    files = sorted((tmp_path / "server").iterdir())
    form = tuple(Remote((file.as_uri(),), f"cifar100/{file.name}") for file in files)
    changed = replace(
        known,
        official=replace(known.official, train=200, test=100, digest=digest),
        fetch=((Remote(((tmp_path / "nowhere").as_uri(),), "cifar-100-python.tar.gz"),), form),
    )
    monkeypatch.setitem(datasets._known, "cifar100", changed)
    said = []
    get("cifar100", tmp_path / "two", said.append)
    assert any("trying another form of cifar100" in line for line in said)
    second = load("cifar100", tmp_path / "two")
    assert (second.digest, second.complete, second.own) == (digest, True, False)
    monkeypatch.setitem(datasets._known, "cifar100", replace(changed, official=replace(changed.official, digest="0" * 64)))
    assert "pixels or labels differ from the official set" in reason("cifar100", tmp_path / "two")  # control


# ---- torchvision


def test_a_class_of_torchvision(own, tmp_path, write_mnist):
    write_mnist(tmp_path / "MNIST" / "raw", zipped=False)
    own(Torchvision("MNIST", mode="L"), classes=10)
    s = load("own", tmp_path)
    theirs = load("mnist", tmp_path, partial=True)
    assert s.digest == theirs.digest
    assert s.own
    assert not theirs.own
    own(Torchvision("MNIST", size=8), classes=10)
    assert load("own", tmp_path).train_x.shape == (20, 8, 8, 3)


def test_what_of_torchvision_is_refused(own, tmp_path):
    (tmp_path / "file").touch()
    own(Torchvision("CIFAR10"))
    assert "torchvision's CIFAR10 runs pickles" in reason("own", tmp_path)
    own(Torchvision("Mnist"))
    assert "torchvision has no data set 'Mnist'" in reason("own", tmp_path)
    own(Torchvision("KMNIST"))
    assert "fetch it with `benchsuite data get`" in reason("own", tmp_path)


def test_torchvision_opens_images_in_the_listed_formats_only(own, tmp_path, monkeypatch):
    from PIL import EpsImagePlugin

    started = []
    monkeypatch.setattr(
        EpsImagePlugin, "Ghostscript", lambda *words, **more: started.append(words) or Image.new("RGB", (8, 8)).im
    )
    photos(tmp_path / "eurosat" / "2750", {"a": 2, "b": 2})
    (tmp_path / "eurosat" / "2750" / "a" / "0.png").write_bytes(EPS)
    own(Torchvision("EuroSAT", train={}, test={}))
    assert "cannot be read as torchvision's EuroSAT" in reason("own", tmp_path)
    assert started == []
    (tmp_path / "eurosat" / "2750" / "a" / "0.png").write_bytes(encoded())
    assert load("own", tmp_path).train_y.tolist() == [0, 0, 1, 1]


# ---- declarations


def test_a_folder_is_found_from_the_file_that_declares_it(own, tmp_path, monkeypatch):
    photos(tmp_path / "mine" / "photos", {"a": 2, "b": 2})
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "elsewhere", "__file__": str(tmp_path / "mine" / "x.py")}
    exec(
        "from benchsuite.data import DataSet, ImageFolder, declare\n"
        "OWN = declare(DataSet(name='own', classes=2, folder='photos', reader=ImageFolder()))",
        names,
    )
    assert load("own", tmp_path / "ignored").train_y.tolist() == [0, 1]
    assert names["OWN"].folder == tmp_path / "mine" / "photos"


@pytest.mark.parametrize("wrong", [{"name": "../x"}, {"name": ""}, {"classes": 0}])
def test_a_declaration_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=r"name|classes"):
        DataSet(**{"name": "own", "classes": 2, "reader": ImageFolder(), **wrong})


def test_a_name_that_is_taken_is_refused(own):
    with pytest.raises(UserError, match="two data sets are called 'mnist'"):
        declare(DataSet(name="mnist", classes=10, reader=ImageFolder()))


def test_a_set_declared_elsewhere_is_never_official(own, tmp_path):
    """Whatever it states of itself; what it states is held against its images all the same."""
    photos(tmp_path, {"a": 2, "b": 2})
    own(ImageFolder())
    digest = load("own", tmp_path).digest
    own(ImageFolder(), official=Official(train=2, test=2, digest=digest))
    assert load("own", tmp_path).own
    assert not sets.has_one_form("own")
    assert sets.has_one_form("mnist")  # control
    own(ImageFolder(), official=Official(train=3, test=2))
    assert "holds 2 of 3 training and 2 of 2 test images" in reason("own", tmp_path)


def test_the_code_of_a_reader_from_elsewhere_is_part_of_what_is_cached(own, tmp_path):
    """A reader that somebody edits does not get what its earlier version decoded."""
    (tmp_path / "file.bin").write_bytes(b"x")
    for value in (1, 2):
        file = tmp_path / "reader.py"
        file.write_text(
            "import numpy as np\nfrom benchsuite.data import Source\nfrom benchsuite.data.cache import Arrays\n"
            f"x, y = np.full((2, 4, 4, 1), {value}, np.uint8), np.arange(2)\n"
            "def read(folder):\n"
            "    return Source(place=folder, files=[folder / 'file.bin'], read=lambda: (Arrays(x, y, x, y), ''))\n"
        )
        names = {"__name__": "reader", "__file__": str(file)}
        exec(compile(file.read_text(), file, "exec"), names)
        own(names["read"])
        assert load("own", tmp_path).train_x.max() == value


def test_the_first_reader_that_finds_its_files_reads(own, tmp_path):
    photos(tmp_path, {"a": 2, "b": 2})
    own(AnyOf((Npz("none.npz"), ImageFolder())))
    assert load("own", tmp_path).train_y.tolist() == [0, 1]


def test_mean_and_standard_deviation_are_exact(own, tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (3000, 4, 4, 3), np.uint8)
    y = np.arange(3000) % 2
    np.savez(tmp_path / "one.npz", x_train=x, y_train=y, x_test=x[:2], y_test=y[:2])
    own(Npz("one.npz"))
    mean, std = sets.channel_statistics(load("own", tmp_path))
    np.testing.assert_allclose(mean, x.mean((0, 1, 2)) / 255, atol=5.1e-5)
    np.testing.assert_allclose(std, x.std((0, 1, 2)) / 255, atol=5.1e-5)


def test_built_in_sets_go_through_the_same_door():
    """One file each, and no table of names elsewhere."""
    assert {*datasets.all()} >= {"cifar10", "cifar100", "digits", "fashion_mnist", "miniimagenet", "mnist", "notmnist", "svhn"}
    for name in ("cifar10", "digits", "svhn"):
        assert datasets._origins[name] == f"benchsuite.data.builtin.{name}"
    engine = Path(cache.__file__).parent
    for file in engine.glob("*.py"):
        assert not [name for name in datasets.all() if f'"{name}"' in file.read_text()], file
    assert isinstance(datasets.get("digits").reader(Path()), Source)
