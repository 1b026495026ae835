import math

import numpy as np
import pytest
import torch

from benchsuite.nn.bits import pack_bits, unfold, unpack_bits


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 8, 11])
@pytest.mark.parametrize("count", [1, 3, 4, 7, 8, 9, 16, 31, 1000])
def test_packing_leaves_no_gap_and_loses_nothing(bits, count):
    values = torch.randint(
        2**bits, (count,), generator=torch.Generator().manual_seed(count), dtype=torch.uint8 if bits <= 8 else torch.int64
    )
    packed = pack_bits(values, bits)
    assert packed.dtype == torch.uint8
    assert len(packed) == math.ceil(count * bits / 8)
    single = np.stack([(values.numpy() >> i) & 1 for i in range(bits)], 1).reshape(-1)
    assert packed.tolist() == np.packbits(single, bitorder="little").tolist()
    assert torch.equal(unpack_bits(packed, bits, values.shape), values.long())
    assert torch.equal(pack_bits(values.long(), bits), packed)
    if bits == 1:
        assert torch.equal(unfold(packed, "bits", values.shape), values)
    if bits == 2:  # of the four pixels of a window, those of one row
        rows = [values[:, None] == torch.tensor(row) for row in ((0, 1), (2, 3))]
        assert all(torch.equal(unfold(packed, i, (count, 2)), row.byte()) for i, row in enumerate(rows))
    assert torch.equal(pack_bits(torch.cat([values, values])[count:], bits), packed)  # a piece of a larger tensor
    values[-1] ^= 1
    assert not torch.equal(pack_bits(values, bits), packed)  # control


def test_packing_keeps_the_shape_and_the_order():
    values = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0)) > 0
    assert torch.equal(unfold(pack_bits(values, 1), "bits", (3, 5, 7)).bool(), values)
    assert torch.equal(unfold(pack_bits(values.mT, 1), "bits", (3, 7, 5)).bool(), values.mT)
    assert not torch.equal(unfold(pack_bits(values.mT, 1), "bits", (3, 5, 7)).bool(), values)  # control
