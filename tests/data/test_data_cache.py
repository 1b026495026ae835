"""The cache: found by content, rebuilt when damaged, never half written, shared by processes."""

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchsuite.data import cache, datasets, load, verify
from benchsuite.data.builtin import mnist as idx_reader
from benchsuite.errors import UserError


@pytest.fixture
def mnist(tmp_path, cache_dir, write_mnist):
    write_mnist(tmp_path / "data" / "MNIST" / "raw")
    return tmp_path / "data"


@pytest.fixture
def decoded(monkeypatch):
    """Which files were decoded since."""
    files = []
    idx = idx_reader.idx
    monkeypatch.setattr(idx_reader, "idx", lambda file, ndim: files.append(file.name) or idx(file, ndim))
    return files


def entry(cache_dir):
    (folder,) = (f for f in (cache_dir / "arrays" / "mnist").iterdir() if f.name != "index")
    return folder


def test_second_load_maps_without_decoding(mnist, cache_dir, decoded):
    first = load("mnist", mnist, partial=True)
    assert len(decoded) == 4
    second = load("mnist", mnist, partial=True)
    assert len(decoded) == 4
    assert isinstance(second.train_x, np.memmap)
    assert not second.train_x.flags.writeable
    assert second.digest == first.digest
    assert second.note == first.note
    np.testing.assert_array_equal(first.train_x, second.train_x)
    assert entry(cache_dir).name == first.digest[:16]
    assert {f.name for f in entry(cache_dir).iterdir()} == {*(f"{a}.npy" for a in cache.Arrays._fields), "meta.json"}


def test_cached_partial_set_is_still_refused_as_complete(mnist):
    load("mnist", mnist, partial=True)
    with pytest.raises(UserError, match="20 of 60,000"):
        load("mnist", mnist)


def test_refused_set_leaves_no_entry(mnist, cache_dir):
    with pytest.raises(UserError):
        load("mnist", mnist)
    assert not list((cache_dir / "arrays" / "mnist").iterdir())


def test_changed_files_are_not_answered_from_the_cache(mnist, write_mnist):
    first = load("mnist", mnist, partial=True)
    old = {f: f.stat() for f in mnist.rglob("*.gz")}
    write_mnist(mnist / "MNIST" / "raw", seed=1)
    for file, stat in old.items():  # same modification time, as from an archive that states it
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    second = load("mnist", mnist, partial=True)
    assert second.digest != first.digest
    assert not np.array_equal(first.train_x, second.train_x)


def test_same_content_elsewhere_shares_the_entry(mnist, cache_dir, tmp_path, write_mnist):
    write_mnist(tmp_path / "other" / "MNIST", zipped=False)
    assert load("mnist", mnist, partial=True).digest == load("mnist", tmp_path / "other", partial=True).digest
    assert entry(cache_dir)


@pytest.mark.parametrize(
    "damage", ["missing", "short", "not an array", "other shape", "no meta", "cut meta", "index", "pipe", "pipe for meta"]
)
def test_damaged_entry_is_rebuilt(mnist, cache_dir, decoded, damage):
    good = load("mnist", mnist, partial=True)
    expected = np.array(good.train_x)
    folder = entry(cache_dir)
    file = folder / "train_x.npy"
    raw = file.read_bytes()
    file.unlink()
    if damage == "short":
        file.write_bytes(raw[:-1])
    elif damage == "not an array":
        file.write_bytes(b"garbage")
    elif damage == "other shape":
        np.save(file, np.zeros((3, 28, 28, 1), np.uint8))
    elif damage == "pipe":
        os.mkfifo(file)
    elif damage != "missing":
        file.write_bytes(raw)
    if damage == "no meta":
        (folder / "meta.json").unlink()
    if damage == "pipe for meta":
        (folder / "meta.json").unlink()
        os.mkfifo(folder / "meta.json")
    if damage == "cut meta":
        (folder / "meta.json").write_text('{"digest": "')
    if damage == "index":
        (index,) = (folder.parent / "index").iterdir()
        index.write_text('{"digest": 1')
    decoded.clear()
    again = load("mnist", mnist, partial=True)
    assert len(decoded) == 4
    np.testing.assert_array_equal(again.train_x, expected)
    assert load("mnist", mnist, partial=True).digest == good.digest
    assert len(decoded) == 4, "the rebuilt entry is used"
    assert len(list(folder.parent.iterdir())) == 2, "nothing but the entry and the index stays behind"


def test_verify_mends_an_altered_entry(mnist, cache_dir):
    good = load("mnist", mnist, partial=True)
    file = entry(cache_dir) / "train_x.npy"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    assert verify("mnist", mnist, partial=True).digest == good.digest
    assert cache.digest(cache.Arrays(*(np.load(entry(cache_dir) / f"{a}.npy") for a in cache.Arrays._fields))) == good.digest


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), OSError("800 requested and 300 written")])
def test_failed_write_leaves_nothing(error, mnist, cache_dir, monkeypatch):
    save = np.save

    def full(file, array):
        if Path(file).name == "test_x.npy":
            raise error
        save(file, array)

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(UserError, match=f"cannot write to .*: {error.strerror or error}; choose"):
        load("mnist", mnist, partial=True)
    assert not list((cache_dir / "arrays" / "mnist").iterdir())


def test_a_write_that_is_refused_half_way_leaves_nothing(room, mnist, cache_dir):
    with room(100), pytest.raises(UserError, match=r"cannot write to .*(File too large|requested and [0-9]+ written); choose"):
        load("mnist", mnist, partial=True)
    assert not list((cache_dir / "arrays" / "mnist").iterdir())
    assert load("mnist", mnist, partial=True)


def test_remains_of_a_killed_process_are_cleared(mnist, cache_dir):
    remains = cache_dir / "arrays" / "mnist" / ".0123.abc" / "new"
    remains.mkdir(parents=True)
    load("mnist", mnist, partial=True)
    assert not remains.parent.exists()


def test_unwritable_cache_is_one_line(mnist, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("BENCHSUITE_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot write to .*BENCHSUITE_CACHE"):
        load("mnist", mnist, partial=True)


def test_another_process_was_faster(mnist, cache_dir, monkeypatch):
    """The entry appears while ours is being written: ours is dropped, theirs is used."""
    arrays, note = datasets.get("mnist").reader(mnist).read()
    (cache_dir / "arrays" / "mnist").mkdir(parents=True)
    save, inodes = np.save, []

    def overtaken(file, array):
        monkeypatch.setattr(np, "save", save)
        cache.store("mnist", "theirs", arrays, note)
        inodes.append(entry_file().stat().st_ino)
        save(file, array)

    def entry_file():
        return cache_dir / "arrays" / "mnist" / cache.digest(arrays)[:16] / "train_x.npy"

    monkeypatch.setattr(np, "save", overtaken)
    ours = cache.store("mnist", "ours", arrays, note)
    np.testing.assert_array_equal(ours.arrays.train_x, arrays.train_x)
    assert [entry_file().stat().st_ino] == inodes
    assert cache.lookup("mnist", "theirs").digest == cache.lookup("mnist", "ours").digest
    assert len(list((cache_dir / "arrays" / "mnist").iterdir())) == 2


def _load(folder, barrier, results):
    barrier.wait()
    s = load("mnist", folder, partial=True)
    results.put((s.digest, int(s.train_x.sum()), s.train_y.tolist()))


def test_concurrent_processes(mnist, cache_dir):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(3), context.Queue()
    processes = [context.Process(target=_load, args=(mnist, barrier, results)) for _ in range(3)]
    for process in processes:
        process.start()
    found = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert found[0] == found[1] == found[2]
    assert entry(cache_dir).name == found[0][0][:16]
    assert len(list((cache_dir / "arrays" / "mnist").iterdir())) == 2


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("BENCHSUITE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.root() == tmp_path / "benchsuite"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.root() == tmp_path / "home" / ".cache" / "benchsuite"
    monkeypatch.setenv("BENCHSUITE_CACHE", str(tmp_path / "own"))
    assert cache.root() == tmp_path / "own"


def test_downloads_are_the_default_folder(cache_dir, write_mnist):
    write_mnist(cache_dir / "downloads" / "MNIST" / "raw")
    assert len(load("mnist", partial=True).train_x) == 20


def test_digest_covers_shapes_labels_and_split(write_mnist):
    x, y = np.zeros((4, 2, 2, 1), np.uint8), np.zeros(4, np.int64)
    variants = [
        cache.Arrays(x, y, x, y),
        cache.Arrays(x.reshape(4, 4, 1, 1), y, x, y),
        cache.Arrays(x, y + 1, x, y),
        cache.Arrays(x, y, x, y + 1),
        cache.Arrays(x[:3], y[:3], np.concatenate([x, x[:1]]), np.concatenate([y, y[:1]])),
    ]
    assert len({cache.digest(v) for v in variants}) == len(variants)
    assert cache.digest(variants[0]) == cache.digest(cache.Arrays(x, y.astype(">i8"), x, y))


def test_import_and_load_need_no_torch(mnist):
    code = (
        "import sys; from pathlib import Path; from benchsuite.data import load\n"
        f"load('mnist', Path({str(mnist)!r}), partial=True)\n"
        "heavy = {'torch', 'torchvision', 'scipy', 'sklearn', 'PIL', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": os.getcwd()})


def test_index_names_the_note(mnist, cache_dir):
    load("mnist", mnist, partial=True)
    (index,) = (cache_dir / "arrays" / "mnist" / "index").iterdir()
    assert json.loads(index.read_text()) == {"digest": load("mnist", mnist, partial=True).digest, "note": ""}


def test_arrays_changed_on_disk_are_decoded_again(mnist, cache_dir, decoded):
    """What a record says of its images is true of the bytes that were loaded."""
    good = load("mnist", mnist, partial=True)
    expected = np.array(good.train_x)
    file = entry(cache_dir) / "train_x.npy"
    state, raw = file.stat(), bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    decoded.clear()
    again = load("mnist", mnist, partial=True)
    assert len(decoded) == 4
    assert again.digest == good.digest
    np.testing.assert_array_equal(again.train_x, expected)


def test_the_digest_is_computed_once_in_a_process(mnist, monkeypatch):
    load("mnist", mnist, partial=True)
    load("mnist", mnist, partial=True)
    monkeypatch.setattr(cache, "digest", lambda arrays: pytest.fail("computed again"))
    load("mnist", mnist, partial=True)
