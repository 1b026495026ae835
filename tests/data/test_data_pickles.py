"""The restricted unpickler reads arrays and containers of both Pythons, and runs nothing."""

import pickle
import struct
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from benchsuite.data import pickles
from benchsuite.errors import UserError


def python2(value):
    """What Python 2 and numpy 1 wrote for a dictionary of str, lists of small integers and uint8 arrays."""
    if isinstance(value, bytes):
        return b"T" + struct.pack("<i", len(value)) + value
    if isinstance(value, int):
        return b"K" + bytes([value])
    if isinstance(value, list):
        return b"](" + b"".join(map(python2, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(python2(k) + python2(v) for k, v in value.items()) + b"u"
    kind = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"(" + b"".join(python2(n) for n in value.shape) + b"t"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    return array + b"(K\x01" + shape + kind + b"\x89" + python2(value.tobytes()) + b"tb"


def test_python_2_pickle():
    x = np.arange(12, dtype=np.uint8).reshape(3, 4)
    content = pickles.loads(b"\x80\x02" + python2({b"data": x, b"labels": [1, 2, 3]}) + b".", "batch")
    assert content[b"labels"] == [1, 2, 3]
    np.testing.assert_array_equal(content[b"data"], x)


@pytest.mark.parametrize("protocol", range(6))
def test_python_3_pickle(protocol):
    value = {
        "c": np.arange(6, dtype=">i4").reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "names": np.array(["ab", "c"]),
        "list": [np.zeros((2, 2), np.uint8), np.uint8(3), b"raw", bytearray(b"more")],
        "ordered": OrderedDict(a=1),
        "plain": (None, True, 2**70, 1.5),
    }
    data = pickle.dumps(value, protocol=protocol)
    found, usual = pickles.loads(data, "file"), pickle.loads(data)
    for key in ("c", "fortran", "names"):
        np.testing.assert_array_equal(found[key], value[key])
        assert found[key].dtype == usual[key].dtype
    np.testing.assert_array_equal(found["list"][0], value["list"][0])
    assert found["list"][1:] == value["list"][1:]
    assert found["ordered"] == value["ordered"]
    assert found["plain"] == value["plain"]


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_malicious_pickle_is_refused(tmp_path, protocol):
    target = tmp_path / "touched"
    data = pickle.dumps({"data": Touch(target)}, protocol=protocol)
    with pytest.raises(UserError, match=r"evil\.pkl: refused") as refusal:
        pickles.loads(data, "evil.pkl")
    assert "\n" not in str(refusal.value)
    assert not target.exists()
    pickle.loads(data)  # the control: it does what it says when it is let
    assert target.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [("os", "system"), ("builtins", "eval"), ("numpy", "load"), ("numpy._core.multiarray", "_reconstruct.__globals__")],
)
def test_global_outside_the_table_is_refused(module, name):
    data = b"\x80\x04" + b"".join(b"\x8c" + bytes([len(s)]) + s.encode() for s in (module, name)) + b"\x93."
    with pytest.raises(UserError, match=f"asks for {module}.{name}"):
        pickles.loads(data, "file")


def test_arrays_of_objects_are_refused():
    with pytest.raises(UserError, match="arrays of object are not admitted"):
        pickles.loads(pickle.dumps(np.array([1, "a"], dtype=object)), "file")


def test_edited_type_flags_change_nothing():
    """A state that would let numpy take the bytes of a number for pointers."""
    data = pickle.dumps(np.zeros(2, np.int64), protocol=2)
    flags = b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t"
    assert flags in data
    found = pickles.loads(data.replace(flags, flags.replace(b"K\x00", b"K\x3f")), "file")
    assert found.dtype == np.int64
    assert found.tolist() == [0, 0]


def test_array_longer_than_its_bytes_is_refused():
    data = pickle.dumps(np.zeros(200, np.uint8), protocol=2)
    with pytest.raises(UserError, match="does not fit"):
        pickles.loads(data.replace(b"K\xc8\x85", b"K\xc9\x85"), "file")


@pytest.mark.parametrize("cut", [0, 1, 20, -1])
def test_truncated_pickle_names_the_file(cut):
    with pytest.raises(UserError, match="batch_3: is not a whole pickle"):
        pickles.loads(pickle.dumps({"data": np.zeros(100)})[:cut], "batch_3")
