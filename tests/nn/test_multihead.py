"""Heads, dropout and backbones: widths, mixed batches, where their random numbers come from, exact sizes."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchsuite.method.base import RunInfo
from benchsuite.methods.individual import Individual
from benchsuite.nn.backbones import ConvNet, Dropout, build_backbone
from benchsuite.nn.multihead import MultiHead
from benchsuite.protocol import Recipe

CLASSES = [2, 5, 3]


def small(classes=CLASSES, seed=0, dropout=0.0):
    return MultiHead.build("digits", image=(1, 8, 8), classes=classes, dropout=dropout, seed=seed)


def separate():
    """The same with a backbone for each task."""
    method = Individual()
    method.run = RunInfo(seed=0, recipe=Recipe(backbone="digits", epochs=1), n_tasks=len(CLASSES))
    return method.prepare(small())


def with_heads(model):
    for task in range(len(CLASSES)):
        model.add_task(task)
    return model


@pytest.fixture
def x():
    return torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_each_head_is_as_wide_as_its_task_has_classes(x):
    model = with_heads(small())
    assert [model(x, t).shape[1] for t in range(3)] == CLASSES


def test_a_class_outside_the_task_never_wins(x):
    model = with_heads(small())
    with torch.no_grad():
        for head in model.heads.values():
            head.bias.fill_(-5)
    labels = torch.arange(12) % 3
    winners = model(x, labels).argmax(1)
    assert (winners < torch.tensor(CLASSES)[labels]).all()
    zero_padded = nn.functional.pad(model(x, 0), (0, 3))  # control: padding with 0 lets a class win that is none
    assert (zero_padded.argmax(1) >= 2).any()


@pytest.mark.parametrize("build", [small, separate])
def test_a_mixed_batch_equals_one_batch_for_each_task(build, x):
    model = with_heads(build()).eval()
    labels = torch.arange(12) % 3
    mixed = model(x, labels)
    assert mixed.shape == (12, 5)
    for t, k in enumerate(CLASSES):
        rows = labels == t
        assert torch.allclose(mixed[rows, :k], model(x[rows], t), atol=1e-6)
        assert (mixed[rows, k:] == torch.finfo(torch.float32).min).all()
    other = model(x, (labels + 1) % 3)
    assert not torch.allclose(mixed, other, atol=1e-3)  # control: the labels matter


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_mixed_batches_give_a_finite_loss_and_gradient_in_both_precisions(precision, x):
    model = with_heads(small())
    labels = torch.arange(12) % 3
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        out = model(x, labels)
    assert out.dtype == precision
    loss = nn.functional.cross_entropy(out.float(), torch.zeros(12, dtype=torch.long))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() and p.grad.dtype == torch.float32 for p in model.parameters())


def test_heads_depend_on_seed_and_task_alone(x):
    in_order = with_heads(small())
    backwards = small()
    for task in (2, 0, 2, 1):
        backwards.add_task(task)
        backwards(x, task)  # an evaluation in between
    other_seed = with_heads(small(seed=1))
    for name, tensor in in_order.state_dict().items():
        assert torch.equal(tensor, backwards.state_dict()[name])
        assert not torch.equal(tensor, other_seed.state_dict()[name])
    assert not torch.equal(in_order.heads["0"].weight[:2], in_order.heads["1"].weight[:2])


@pytest.mark.parametrize("build", [small, separate])
def test_the_global_generator_is_neither_read_nor_moved(build, x):
    def weights(state):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        model = build()
        for task in range(3):
            model.adaptation(SimpleNamespace(task_labels=[task], classes_in_this_experience=[0, 1]))
        model.train()(x, 0)
        assert torch.equal(torch.get_rng_state(), before)
        return model.state_dict()

    one, other = weights(1), weights(2)
    assert all(torch.equal(one[name], other[name]) for name in one)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    nn.Linear(2, 2)
    assert not torch.equal(torch.get_rng_state(), before)  # control: PyTorch's own layers do move it


@pytest.mark.parametrize("p", [0.05, 0.15, 0.5])
def test_dropout_drops_a_share_p_and_keeps_the_mean(p):
    layer = Dropout(p)
    layer.reseed(7, torch.device("cpu"))
    n = 1_000_000
    out = layer(torch.ones(n))
    assert abs((out == 0).float().mean() - p) < 5 * (p * (1 - p) / n) ** 0.5
    assert out.unique().tolist() == pytest.approx([0, 1 / (1 - p)], rel=1e-4)


def test_dropout_has_a_generator_of_its_own(x):
    def draw(seed, layer):
        layer.reseed(seed, torch.device("cpu"))
        before = torch.get_rng_state()
        out = layer(x)
        assert torch.equal(torch.get_rng_state(), before)
        return out

    layer = Dropout(0.5)
    assert torch.equal(draw(1, layer), draw(1, Dropout(0.5)))
    assert not torch.equal(draw(1, layer), draw(2, layer))
    assert not torch.equal(layer(x), layer(x))
    assert layer.eval()(x) is x


def test_a_copied_dropout_goes_on_alone(x):
    layer = Dropout(0.5)
    layer.reseed(1, torch.device("cpu"))
    layer(x)
    twin = copy.deepcopy(layer)
    expected = layer(x)
    layer(x)
    assert torch.equal(twin(x), expected)


@pytest.mark.parametrize("channels_last", [False, True])
def test_dropout_acts_on_every_element_alike(channels_last):
    layer = Dropout(0.5)
    layer.reseed(3, torch.device("cpu"))
    ones = torch.ones(64, 32, 16, 16)
    out = layer(ones.to(memory_format=torch.channels_last) if channels_last else ones)
    share = (out == 0).float()
    assert share.mean((0, 2, 3)).sub(0.5).abs().max() < 0.03
    assert share.mean((1, 2, 3)).sub(0.5).abs().max() < 0.04


@pytest.mark.parametrize("name", ["cacl", "digits"])
def test_relu_after_max_pooling_changes_neither_output_nor_gradient(name):
    image = (3, 32, 32) if name == "cacl" else (1, 8, 8)
    ours = build_backbone(name, image, 0.0, seed=1).double()
    layers = list(copy.deepcopy(ours).children())
    swapped = 0
    for i, layer in enumerate(layers[1:], 1):
        if isinstance(layer, nn.ReLU) and isinstance(layers[i - 1], nn.MaxPool2d):
            layers[i - 1], layers[i] = layers[i], layers[i - 1]
            swapped += 1
    assert swapped == (2 if name == "cacl" else 1)
    twin = nn.Sequential(*layers)
    x = torch.randn(4, *image, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    outputs = [network(x) for network in (ours, twin)]
    assert torch.equal(*outputs)
    for out in outputs:
        out.square().sum().backward()
    for a, b in zip(ours.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-12, atol=1e-12)
        assert a.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("size", "features", "classes", "head"), [(32, 1024, 5, 5_125), (84, 16_384, 5, 81_925), (32, 1024, 10, 10_250)]
)
def test_sizes_of_the_cacl_network(size, features, classes, head):
    model = MultiHead.build("cacl", image=(3, size, size), classes=[classes])
    model.add_task(0)
    assert sum(p.numel() for n, p in model.backbone.named_parameters() if n.endswith("weight")) == 390_848
    assert sum(p.numel() for n, p in model.backbone.named_parameters() if n.endswith("bias")) == 640
    assert model.features == features
    assert model.backbone.eval()(torch.zeros(1, 3, size, size)).shape == (1, features)
    assert sum(p.numel() for p in model.heads.parameters()) == head


def test_an_image_too_small_for_the_network_is_refused():
    with pytest.raises(ValueError, match="8 x 8 is too small"):
        ConvNet((1, 8, 8), [(4, 3), "max", (4, 3), "max", (4, 3)], 0.0)


@pytest.mark.parametrize(("name", "image"), [("digits", (1, 8, 8)), ("cacl", (3, 32, 32)), ("resnet18", (3, 32, 32))])
def test_width_multiplies_the_channels_of_every_layer(name, image):
    plain, half, wide = (MultiHead.build(name, image=image, classes=[5], width=width) for width in (1.0, 0.5, 2.0))
    shapes = [[m.weight.shape for m in model.modules() if isinstance(m, torch.nn.Conv2d)] for model in (plain, half, wide)]
    for one, narrow, broad in zip(*shapes, strict=True):
        assert 2 * narrow[0] == one[0] == broad[0] / 2
        assert one[1] in image[:1] or 2 * narrow[1] == one[1] == broad[1] / 2
    assert wide.features == 2 * plain.features
    assert "width" not in plain.describe()
    assert MultiHead.from_description(half.describe()).features == half.features
    thin = MultiHead.build(name, image=image, classes=[5], width=1e-6)
    assert min(m.weight.shape[0] for m in thin.modules() if isinstance(m, torch.nn.Conv2d)) == 1
