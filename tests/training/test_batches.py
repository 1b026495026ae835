"""The fast batches against their plain twin, and the distribution of the augmentation."""

import pytest
import torch
from scipy.stats import chisquare
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as TF

from benchsuite.nn.backbones import reseed_dropout
from benchsuite.nn.images import normalise
from benchsuite.nn.multihead import MultiHead
from benchsuite.training.batches import Augmentation, Batches, TaskImages

CIFAR = Augmentation(padding=4, flip=True)


class Plain(Dataset):
    """The twin: one image at a time through torchvision's own functions, under the same random decisions."""

    def __init__(self, task, draws, padding):
        self.task, self.draws, self.padding = task, draws, padding

    def __len__(self):
        return len(self.draws.index)

    def __getitem__(self, i):
        d, image = self.draws, self.task.pixels[self.draws.index[i]].permute(2, 0, 1)
        if d.flip[i]:
            image = TF.horizontal_flip(image)
        image = TF.crop(TF.pad(image, [self.padding] * 4), int(d.top[i]), int(d.left[i]), *self.task.pixels.shape[1:3])
        x = TF.normalize(image.double() / 255, list(self.task.mean), list(self.task.std))
        return x, self.task.labels[d.index[i]]


def losses(batches, steps):
    """Losses of the first steps of Adam on a fresh CIFAR network in float64."""
    model = MultiHead.build("cacl", image=(3, 32, 32), classes=[5], dropout=0.15, seed=3).double()
    model.add_task(0)
    model.double().to(memory_format=torch.channels_last)
    reseed_dropout(model, 3, 0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    out = []
    for (x, y, *_), _ in zip(batches, range(steps), strict=False):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x, 0), y)
        loss.backward()
        optimizer.step()
        out.append(loss.item())
    return torch.tensor(out, dtype=torch.float64)


def test_same_losses_as_the_plain_loader_in_float64(colour_task):
    task = colour_task()
    fast = Batches([task], [0], 8, augmentation=CIFAR, seed=5, dtype=torch.float64)
    twin = DataLoader(Plain(task, fast.draws(0), 4), batch_size=8)
    expected = losses(twin, 3)
    assert torch.allclose(losses(fast, 3), expected, rtol=1e-9, atol=0)
    other_crops = Batches([task], [0], 8, augmentation=CIFAR, seed=6, dtype=torch.float64)
    assert not torch.allclose(losses(other_crops, 3), expected, rtol=1e-3, atol=0)  # control: the losses can tell


def test_offsets_and_flips_are_uniform_and_independent(colour_task):
    batches = Batches([colour_task(n=50_000, size=2, channels=1)], [0], 64, augmentation=CIFAR, seed=1)
    d = batches.draws(0)
    cells = torch.bincount(d.flip.long() * 81 + d.top * 9 + d.left, minlength=162)
    assert chisquare(cells).pvalue > 1e-3
    assert chisquare(cells[:161]).pvalue > 1e-3
    assert cells.min() > 0  # every one of the 9 x 9 x 2 forms occurs
    skewed = torch.where(d.top == 8, 7, d.top)  # control: an offset that never reaches 8 is found out
    assert chisquare(torch.bincount(skewed, minlength=9)).pvalue < 1e-6


def test_an_epoch_holds_every_image_once_and_epochs_differ(colour_task):
    batches = Batches([colour_task()], [0], 40, augmentation=CIFAR, seed=1)
    first, second = batches.draws(0), batches.draws(1)
    assert first.index.sort().values.tolist() == list(range(96)) == second.index.sort().values.tolist()
    assert first.index.tolist() != second.index.tolist()
    assert [len(y) for _, y, _ in batches] == [40, 40, 16]  # the last partial batch is kept
    assert len(batches) == 3


def test_a_later_epoch_does_not_depend_on_what_was_drawn_before(colour_task):
    one, other = (Batches([colour_task()], [0], 40, augmentation=CIFAR, seed=1) for _ in range(2))
    list(one)
    other.epoch = 1
    assert all(torch.equal(a, b) for m, n in zip(one, other, strict=True) for a, b in zip(m, n, strict=True))


def test_evaluation_batches_are_the_images_in_order(colour_task):
    task = colour_task()
    x = torch.cat([x for x, _, _ in Batches([task], [0], 40, augmentation=None)])
    plain = (task.pixels.permute(0, 3, 1, 2) / 255 - torch.tensor(task.mean).view(3, 1, 1)) / torch.tensor(task.std).view(3, 1, 1)
    assert torch.allclose(x, plain, atol=1e-5)
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_mixed_tasks_keep_their_normalisation_and_share_the_epoch(colour_task):
    big = colour_task(n=90)
    small = TaskImages(
        pixels=colour_task(1, n=30, channels=1).pixels, labels=torch.zeros(30).long(), mean=(0.1,) * 3, std=(0.3,) * 3
    )
    batches = Batches([big, small], [0, 1], 50, augmentation=Augmentation(), seed=2)
    x, _, t = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert torch.bincount(t).tolist() == [60, 60]  # equal shares: the small one repeats, the big one is sampled
    index = Batches([big, small], [0, 1], 50, augmentation=Augmentation(), seed=2).draws(0).index
    grey = index[t == 1] - 90
    assert torch.allclose(x[t == 1], normalise(small.pixels[grey], small.mean, small.std))
    assert sorted(torch.bincount(grey, minlength=30).tolist()) == [2] * 30


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grey_image_becomes_an_rgb_one_by_normalisation(colour_task, channels):
    pixels = colour_task(channels=channels).pixels
    x = normalise(pixels, (0.1, 0.1, 0.1), (0.2752,) * 3)
    assert x.shape == (96, 3, 32, 32)
    if channels == 1:
        assert torch.equal(x[:, 0], x[:, 2])


@pytest.mark.parametrize("augmentation", [CIFAR, None])
@pytest.mark.parametrize(("count", "sizes"), [(33, [16, 17]), (32, [16, 16]), (34, [16, 16, 2]), (17, [17]), (1, [1])])
def test_no_image_is_alone_in_the_last_batch(count, sizes, augmentation, colour_task):
    task = colour_task()
    task = TaskImages(pixels=task.pixels[:count], labels=task.labels[:count], mean=task.mean, std=task.std)
    assert len(task.labels) == count
    batches = Batches([task], [0], 16, augmentation=augmentation)
    assert [len(y) for _, y, _ in batches] == sizes
    assert len(batches) == len(sizes)
