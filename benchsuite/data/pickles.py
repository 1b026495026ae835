"""Reading pickles of arrays and plain containers without executing them.

A pickle is a program: it names functions and calls them. Here names are looked up only in a short table of stand-ins, which
build arrays of numbers or text from bytes. Even numpy's own functions are not available: an array of objects, or a type with
edited flags, would let a pickle write pointers into memory.
"""

from __future__ import annotations

import io
import math
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError


def loads(data: bytes, file: Path | str) -> Any:
    """The plain containers, numbers, byte strings and arrays in `data`; str of Python 2 becomes bytes.

    Raises UserError with the name of `file` for any other global and for damaged data.
    """
    try:
        return _Restricted(io.BytesIO(data), file).load()
    except UserError:
        raise
    except Exception as error:  # damaged opcodes can raise almost anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{file}: is not a whole pickle ({reason})", "fetch it again") from None


class _Type:
    """Replaces numpy.dtype: fixed-width numbers and text only; uses only the byte order of the pickled state."""

    def __init__(self, code: str | bytes, *_: Any) -> None:
        self.dtype = np.dtype(code.decode("ascii") if isinstance(code, bytes) else code)
        if self.dtype.kind not in "biufSU" or self.dtype.fields or self.dtype.subdtype:
            raise pickle.UnpicklingError(f"arrays of {self.dtype} are not admitted")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in (">", b">"):
            self.dtype = self.dtype.newbyteorder(">")


class _Array(np.ndarray):
    """Replaces numpy.ndarray while its state is set."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, raw = state
        if not isinstance(kind, _Type) or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("an array's content must be bytes of a numeric type")
        if math.prod(shape) * kind.dtype.itemsize != len(raw):
            raise pickle.UnpicklingError(f"an array of shape {shape} does not fit its {len(raw)} bytes")
        super().__setstate__((1, shape, kind.dtype, fortran, raw))


def _reconstruct(*_: Any) -> _Array:
    return _Array(0, np.uint8)


def _scalar(kind: _Type, raw: bytes) -> Any:
    return np.frombuffer(raw, kind.dtype)[0]


def _frombuffer(buffer: bytes | bytearray, kind: _Type, shape: tuple[int, ...], order: str = "C") -> np.ndarray:
    return np.frombuffer(buffer, kind.dtype).reshape(shape, order=order)


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":  # the encoding in which Python 3 writes bytes for Python 2
        raise pickle.UnpicklingError(f"encoding {encoding!r} is not admitted")
    return text.encode("latin1")


def _bytearray(data: bytes | str = b"", _: str = "latin-1") -> bytearray:
    return bytearray(data.encode("latin-1") if isinstance(data, str) else data[:])  # data[:] refuses a number


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Type,
    ("numpy", "ndarray"): "ndarray",  # only an argument of _reconstruct, so it need not be callable
    ("_codecs", "encode"): _encode,
    ("builtins", "bytearray"): _bytearray,
    ("__builtin__", "bytearray"): _bytearray,
    ("collections", "OrderedDict"): OrderedDict,
}
for _core in ("numpy.core", "numpy._core"):  # numpy 1 and 2
    _ADMITTED[f"{_core}.multiarray", "_reconstruct"] = _reconstruct
    _ADMITTED[f"{_core}.multiarray", "scalar"] = _scalar
    _ADMITTED[f"{_core}.numeric", "_frombuffer"] = _frombuffer


class _Restricted(pickle.Unpickler):
    def __init__(self, data: io.BytesIO, file: Path | str) -> None:
        super().__init__(data, fix_imports=False, encoding="bytes")
        self.file = file

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise UserError(
                f"{self.file}: refused, it asks for {module}.{name} where only arrays and plain containers belong",
                "do not trust this file, fetch it from the official source",
            ) from None
