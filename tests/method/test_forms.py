"""Storage forms: how numbers are rounded, what a file takes, and that it decodes by itself."""

import pytest
import torch

from benchsuite.checks.contract import stored_within
from benchsuite.errors import UserError
from benchsuite.method import forms
from benchsuite.method.artifact import Artifact
from benchsuite.nn.multihead import MultiHead
from benchsuite.record.schema import BITS

NAME = "weights/layer.x"
SHAPES = [  # and the dimensions of their units
    *(((5, 3, 3, 3), 0), ((4, 64), 0), ((4, 65), 0), ((3, 200), 0), ((6, 2), 0), ((7, 130), 1), ((9, 3, 3), 0)),
    *(((3, 4, 5, 2, 2), (0, 1)), ((2, 3, 4), 2), ((1, 40), 1), ((40,), 0), ((), 0), ((0, 5), 0), ((5, 0), 0), ((3, 1), 0)),
]


def drawn(shape, seed=0, size=1.0):
    """Numbers whose units differ in size."""
    source = torch.Generator().manual_seed(seed)
    x = size * torch.randn(shape, generator=source)
    for axis in range(x.dim()):
        along = [1] * x.dim()
        along[axis] = x.shape[axis]
        x = x * torch.rand(along, generator=source)
    return x


def through(tensor, form, axis=0, name=NAME):
    """The tensor as a file gives it back, and its entry in the file."""
    artifact = Artifact({name: tensor}, {}).encoded(form, {"x": axis})
    (stored,) = artifact.tensors.values()
    return Artifact.from_bytes(artifact.to_bytes()).tensors[name], stored


@pytest.mark.parametrize("form", BITS)
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_numbers_are_rounded_by_at_most_half_a_step_and_take_the_bytes_of_the_formula(form, shape, axis, monkeypatch):
    for size in (1e-6, 1e-3, 1.0, 1e4):
        tensor = drawn(shape, size=size)
        bound, nbytes = stored_within(tensor, form, NAME, {"x": axis})
        decoded, stored = through(tensor, form, axis)
        assert decoded.shape == tensor.shape
        assert decoded.dtype == tensor.dtype
        assert ((decoded - tensor).abs() <= bound).all()
        assert stored.numel() * stored.element_size() == nbytes
        if stored.dtype == torch.uint8:  # control: a step too large
            with monkeypatch.context() as patch:
                patch.setattr(forms, "_steps", lambda scales, bits: 2.5 * scales.float() / (2 ** (bits - 1) - 1))
                assert ((through(tensor, form, axis)[0] - tensor).abs() > bound).any()


def test_bytes_of_a_kernel_and_of_a_vector():
    kernel = drawn((8, 16, 3, 3))
    sizes = {form: through(kernel, form)[1].nbytes for form in BITS}
    assert sizes == {"fp16": 2 * 1152, "int8": 8 * 2 + 1152, "int6": 8 * 2 + 864, "int4": 8 * 3 * 2 + 576}  # 144 = 64 + 64 + 16
    assert {through(drawn((1152,)), form)[1].nbytes for form in BITS} == {2304}


@pytest.mark.parametrize("form", BITS)
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_no_form_is_larger_than_the_one_before(form, shape, axis):
    names = ["fp32", *BITS]
    before = names[names.index(form) - 1]
    assert through(drawn(shape), form, axis)[1].nbytes <= through(drawn(shape), before, axis)[1].nbytes


@pytest.mark.parametrize("form", ["int8", "int6", "int4"])
def test_zero_and_constant_units(form):
    tensor = torch.zeros(3, 70)
    tensor[1] = -0.7
    tensor[2, 5] = 2.0**-30  # far below what fp16 can hold: the scale is rounded up, never to 0
    decoded, _ = through(tensor, form)
    assert torch.equal(decoded[0], torch.zeros(70))
    assert torch.allclose(decoded[1], tensor[1], rtol=2**-10)
    assert decoded.isfinite().all()
    q = torch.tensor([-127.0, -126.5, -0.5, 0.0, 0.5, 1.5, 127.0])[None] / 127
    if form == "int8":  # half to even, and the codes are q + 127
        assert through(q, form)[1].tolist()[2:] == [0, 1, 127, 127, 127, 129, 254]


@pytest.mark.parametrize("shape", [(2, 3), (6,)])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -65505.0])
@pytest.mark.parametrize("form", BITS)
def test_what_a_form_cannot_hold_is_refused(form, value, shape):
    tensor = torch.full(shape, value)
    with pytest.raises(UserError, match=f"{NAME} holds numbers that are not finite or above 65504, .* stored in {form}"):
        through(tensor, form)
    assert torch.allclose(through(torch.full(shape, 65504.0), form)[0], torch.full(shape, 65504.0))
    assert through(tensor, "fp32")[0].shape == shape


def test_masks_and_indices_stay_as_they_are():
    kept = {"masks/a": torch.tensor([[3, 1], [0, 255]], dtype=torch.uint8), "masks/b": torch.tensor([[True, False]])}
    kept |= {"masks/c": torch.arange(6, dtype=torch.int32).view(2, 3)}
    for form in BITS:
        artifact = Artifact(kept, {"a": 1}).encoded(form, {})
        assert artifact.tensors == kept
        read = Artifact.from_bytes(artifact.to_bytes())
        assert read.header == {"a": 1}
        assert all(torch.equal(read.tensors[name], t) for name, t in kept.items())


def test_the_plain_file_is_as_before_and_the_unit_axes_stand_in_the_others_only_where_needed():
    artifact = Artifact({NAME: drawn((4, 6)), "weights/y": drawn((2, 3))}, {"a": 1})
    assert artifact.encoded("fp32", {"x": 1}).to_bytes() == artifact.encoded("native", {"x": 1}).to_bytes() == artifact.to_bytes()
    assert artifact.encoded("int8", {"x": 1, "y": 0, "z": 1}).header == {"a": 1, "form": "int8", "unit_axes": {"x": 1}}
    assert artifact.encoded("int8", {"y": 0}).header == {"a": 1, "form": "int8"}


def test_a_scale_for_each_component_is_more_exact_than_one_for_each_row():
    """Components of a bank differ in size, the rows of N do not; the control takes dimension 0."""
    n = torch.randn(32, 40, generator=torch.Generator().manual_seed(1)) * torch.logspace(0, -3, 40)
    off = {axis: float(((through(n, "int4", axis)[0] - n).norm(dim=0) / n.norm(dim=0)).mean()) for axis in (0, 1)}
    assert off[1] < 0.15
    assert off[0] > 3 * off[1]


def test_the_served_network_predicts_as_the_decoded_tensors():
    model = MultiHead.build("digits", image=(1, 8, 8), classes=[2, 2])
    for task in (0, 1):
        model.add_task(task)
    artifact = Artifact.of_network(model.eval())
    x = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    encoded = artifact.encoded("int8", {})
    served = Artifact.from_bytes(encoded.to_bytes()).network()
    decoded = forms.decode(encoded.tensors, "int8", {})
    by_hand = artifact.network()
    for name, p in by_hand.named_parameters():
        p.data = decoded[name.replace("backbone.", "weights/", 1).replace("heads.", "heads/", 1)]
    for task in (0, 1):
        assert torch.equal(served(x, task), by_hand(x, task))
        assert not torch.equal(served(x, task), model(x, task))  # control: the form did round


def test_a_damaged_file_is_refused(tmp_path):
    content = Artifact({NAME: drawn((4, 60))}, {}).encoded("int4", {}).to_bytes()
    (tmp_path / "a").write_bytes(content)
    assert Artifact.read(tmp_path / "a").tensors[NAME].shape == (4, 60)
    for bad in (
        content.replace(b"4x60", b"4x99"),
        content.replace(b"4x60", b"0x60"),
        content.replace(b"int4", b"int5"),
        content[:9],
    ):
        (tmp_path / "a").write_bytes(bad)
        with pytest.raises(UserError, match="is not a benchsuite artifact"):
            Artifact.read(tmp_path / "a")
