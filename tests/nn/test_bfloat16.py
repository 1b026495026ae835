"""bf16 convolutions on a CPU without bf16 arithmetic are those of one that has it, up to the order of their sums."""

import pytest
import torch
from torch.func import grad, vmap
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

from benchsuite.nn import bfloat16
from benchsuite.training.accounting import StepMemory
from benchsuite.training.device import configure_process


@pytest.fixture
def wide():
    """Convolutions in fp32 on bf16 operands while the test runs, whatever this CPU has."""
    bfloat16.install()
    yield
    bfloat16.uninstall()


def images(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def convolved(dtype, precision="fp32", stride=1, padding=0, groups=1):
    """A convolution of operands that were rounded to bf16, and its gradients, g being dL/dY: in bf16 autocast, or in `dtype`."""
    shapes = ((4, 6, 9, 9), (8, 6 // groups, 3, 3), (8,))
    x, weight, bias = (images(*s, seed=i).bfloat16().to(dtype).requires_grad_() for i, s in enumerate(shapes))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        y = F.conv2d(x, weight, bias, stride, padding, 1, groups)
    y.backward(images(*y.shape, seed=3).bfloat16().to(y.dtype))
    return [y.detach(), x.grad, weight.grad, bias.grad]


def rounds(made, exact):
    """Whether `made` is `exact` rounded to bf16, which has 8 significant bits, but for what fp32 sums err by."""
    return bool(((made.double() - exact).abs() <= 2**-8 * exact.abs() + 1e-5 * exact.abs().max()).all())


@pytest.mark.parametrize("geometry", [{}, {"stride": 2, "padding": 1}, {"groups": 2}, {"padding": "same"}], ids=str)
def test_they_are_exact_sums_of_rounded_operands_rounded_once(geometry, wide):
    exact = convolved(torch.float64, **geometry)
    made = convolved(torch.float32, "bf16", **geometry)
    assert made[0].dtype == torch.bfloat16
    assert all(map(rounds, made, exact))
    assert not any(map(rounds, [1.006 * t.float() for t in made], exact))  # control: more than half a unit in the last place
    for t, other in zip(convolved(torch.float32, **geometry), exact, strict=True):
        assert (t - other).abs().max() <= 1e-5 * other.abs().max()  # fp32 is left alone


def test_native_ones_are_near_and_fp32_is_the_same_to_the_bit(request):
    bfloat16.uninstall()
    native, fp32 = convolved(torch.float32, "bf16"), convolved(torch.float32)
    request.getfixturevalue("wide")
    made = convolved(torch.float32, "bf16")
    for one, other in zip(made, native, strict=True):  # some kernels round between the parts of a sum
        assert (one.float() - other.float()).abs().max() <= 2**-6 * other.float().abs().max()
    assert [t.dtype for t in made] == [t.dtype for t in native]
    assert all(map(torch.equal, convolved(torch.float32), fp32))


def test_gradients_that_modifiers_ask_for_are_too(wide):
    def gradients(dtype):
        x, g, weight = (images(*s).bfloat16().to(dtype) for s in ((4, 6, 9, 9), (4, 8, 4, 4), (8, 6, 3, 3)))
        return [conv2d_input(x.shape, weight, g, 2), conv2d_weight(x, weight.shape, g, 2)]

    assert all(map(rounds, gradients(torch.bfloat16), gradients(torch.float64)))


def test_gradients_of_single_images_are_those_of_batches_of_one(wide):
    x, weight = images(3, 2, 8, 8), images(4, 2, 3, 3, seed=1)

    def loss(weight, image):
        with torch.autocast("cpu", torch.bfloat16):
            return F.conv2d(image[None], weight).float().square().sum()

    each = torch.stack([grad(loss)(weight, image) for image in x])
    assert torch.allclose(vmap(grad(loss), (None, 0))(weight, x), each, rtol=2**-6, atol=2**-6 * float(each.abs().max()))


def held():
    conv = torch.nn.Conv2d(3, 8, 3)
    x = images(4, 3, 12, 12)
    memory = StepMemory(conv)
    memory.open()
    memory.start_of_forward()
    with torch.autocast("cpu", torch.bfloat16):
        loss = conv(x).float().square().mean()
    memory.end_of_forward()
    loss.backward()
    memory.close()
    return memory.held, memory.inputs, memory.peak


def test_a_step_needs_the_same_memory_with_and_without_bf16_arithmetic(request):
    bfloat16.uninstall()
    native = held()
    request.getfixturevalue("wide")
    assert held() == native
    assert min(native) > 0


def test_only_a_cpu_without_bf16_needs_it(monkeypatch):
    bfloat16.uninstall()
    try:
        for native, precision, expected in ((True, "bf16", False), (False, "fp32", False), (False, "bf16", True)):
            monkeypatch.setattr(bfloat16, "native", lambda native=native: native)
            configure_process("cpu", precision)
            assert (bfloat16._library is not None) is expected
    finally:
        bfloat16.uninstall()
