"""Small files in the official formats, and a cache folder of each test's own."""

import gzip
import struct

import numpy as np
import pytest


@pytest.fixture
def cache_dir(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("BENCHSUITE_CACHE", str(folder))
    return folder


@pytest.fixture
def write_mnist():
    """write(folder, zipped=True, seed=0): 20 training and 10 test images as idx files; returns the pixels."""

    def write(folder, zipped=True, seed=0):
        rng = np.random.default_rng(seed)
        folder.mkdir(parents=True, exist_ok=True)
        pixels = []
        for prefix, n in (("train", 20), ("t10k", 10)):
            x = rng.integers(0, 256, (n, 28, 28), np.uint8)
            y = np.arange(n, dtype=np.uint8) % 10
            for name, raw in (
                (f"{prefix}-images-idx3-ubyte", struct.pack(">IIII", 2051, n, 28, 28) + x.tobytes()),
                (f"{prefix}-labels-idx1-ubyte", struct.pack(">II", 2049, n) + y.tobytes()),
            ):
                if zipped:
                    (folder / f"{name}.gz").write_bytes(gzip.compress(raw))
                else:
                    (folder / name).write_bytes(raw)
            pixels.append(x)
        return pixels

    return write
