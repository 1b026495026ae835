"""Settings of the recipe that papers vary: augmentation, and seeds and orders of their own. Neutral, they change no identity."""

from dataclasses import replace

import pytest
import torch
from short_runs import TINY, make, weights

from benchsuite.errors import UserError
from benchsuite.nn.multihead import MultiHead
from benchsuite.protocol import protocols
from benchsuite.randomness import seed_globals
from benchsuite.training.assemble import assemble
from benchsuite.training.batches import Augmentation
from benchsuite.training.settings import one_class_tasks, recipe_of, resolve
from benchsuite.training.stream import build_stream

CIFAR = protocols.get("split-cifar100")
RECIPE = CIFAR.recipe("smoke")


def job(protocol="split-digits", seed=1, **overrides):
    return resolve(protocol, "smoke", "finetune", seed, overrides=overrides)


def refusal(protocol="split-digits", **overrides):
    with pytest.raises(UserError) as error:
        job(protocol, **overrides)
    return str(error.value)


@pytest.mark.parametrize("name", protocols.all())
def test_neutral_values_change_no_identity_and_others_do(name):
    plain, own = job(name), protocols.get(name)
    as_ever = {"flip": own.flip, "crop_padding": own.crop_padding, "order_seed": "none", "init_seed": "none"}
    as_ever |= {"task_order": "shuffled", "class_order": "listed"}
    assert job(name, **as_ever).config == plain.config
    changes = {
        "flip": not own.flip,
        "crop_padding": own.crop_padding + 1,
        "order_seed": 1,
        "init_seed": 1,
        "task_order": "listed",
    }
    assert len({plain.config, *(job(name, **{k: v}).config for k, v in changes.items())}) == 1 + len(changes)


def augmentation(**overrides):
    chosen = job("split-digits", **TINY, **overrides)
    made = build_stream(protocols.get("split-digits"), recipe_of(chosen.settings), 1, data_dir=None, device=torch.device("cpu"))
    return made.augmentation


def test_flip_and_crop_padding_replace_those_of_the_protocol():
    assert augmentation() == Augmentation(padding=0, flip=False)
    assert augmentation(flip="true", crop_padding="2") == Augmentation(padding=2, flip=True)
    assert refusal(crop_padding=9) == "crop_padding must be at most 8, the image's side, got 9"


def first_weights_and_tasks(seed=1, method="finetune", **overrides):
    """The initial weights, those that the method draws for its second task included, and the names of the tasks."""
    chosen = resolve("split-digits", "smoke", method, seed, overrides=TINY | {"lr": 1e-30, "tasks": 2} | overrides)
    recipe = recipe_of(chosen.settings)
    stream = build_stream(protocols.get("split-digits"), recipe, seed, data_dir=None, device=torch.device("cpu"))
    seed_globals(seed)
    strategy = assemble(chosen, stream)
    for experience in stream.train:
        strategy.train(experience, eval_streams=[])
    return weights(strategy.model), [task.name for task in stream.tasks]


@pytest.mark.parametrize("method", ["finetune", "individual", "packnet", "cacl"])
def test_order_and_initial_weights_have_seeds_of_their_own(method):
    one, two = first_weights_and_tasks(1, method), first_weights_and_tasks(2, method)
    assert not torch.allclose(one[0], two[0], rtol=0, atol=1e-3)
    assert one[1] != two[1]
    order, init = (first_weights_and_tasks(1, method, **{name: 2}) for name in ("order_seed", "init_seed"))
    assert torch.allclose(order[0], one[0], rtol=0, atol=1e-20)
    assert order[1] == two[1]
    assert torch.allclose(init[0], two[0], rtol=0, atol=1e-20)
    assert init[1] == one[1]


def names(seed=1, **changes):
    return [task.name for task in CIFAR.sequence(seed, replace(RECIPE, tasks=None, **changes))]


def test_tasks_as_listed_are_the_same_for_every_seed():
    assert names(1, task_order="listed") == names(2, task_order="listed") == [str(i + 1) for i in range(20)]
    assert names(1) != names(2)
    assert refusal(order_seed=3, task_order="listed") == "order_seed has no effect with task_order=listed and class_order=listed"


def test_shuffled_classes_are_dealt_once_each_and_anew_for_each_seed():
    recipe = replace(RECIPE, tasks=None, class_order="shuffled", task_order="listed")
    one, two = CIFAR.sequence(1, recipe), CIFAR.sequence(2, recipe)
    assert sorted(c for task in one for c in task.classes) == list(range(100))
    assert [len(task.classes) for task in one] == [5] * 20
    assert one != two == CIFAR.sequence(1, replace(recipe, order_seed=2))
    assert {task.name for task in one} == {task.name for task in two}, "or their runs could not be averaged"
    assert names(1) == [task.name.split()[-1] for task in CIFAR.sequence(1, replace(recipe, task_order="shuffled"))]


@pytest.mark.parametrize("protocol", ["rotated-digits", "five-datasets"])
def test_classes_that_cannot_be_dealt_are_refused(protocol):
    assert refusal(protocol, class_order="shuffled").startswith("class_order=shuffled needs tasks that divide the classes")


def test_no_result_is_reported_for_the_order_of_the_tuning_seed():
    assert "the settings were tuned on the task order of seed 1002" in refusal(order_seed=1002)
    assert job(init_seed=1002)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("epochs", v) for v in (10**20, "100000000000000000000", 10**6 + 1)),
        *((name, 10**20) for name in ("batch_size", "milestones", "train_per_class", "order_seed", "tasks", "width")),
        *(("lr", 1e300), ("weight_decay", 1e300)),
    ],
)
def test_absurd_numbers_are_refused(name, value):
    assert refusal(**{name: (value,) if name == "milestones" else value}).startswith(name)


def test_a_batch_of_one_image_is_refused_where_normalisation_would_fail():
    for protocol, image in (("split-digits", (1, 8, 8)), ("split-cifar100", (3, 32, 32))):
        network = MultiHead.build("resnet10", image=image, classes=[2], width=0.1, batchnorm="shared").train()
        network.add_task(0)
        if image[1] == 8:
            with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
                network(torch.zeros(1, *image), 0)
            assert refusal(protocol, backbone="resnet10", batch_size=1) == (
                "batch_size=1: backbone 'resnet10' normalises single pixels on split-digits, so a batch needs two images; "
                "use larger batches, or a backbone without batch normalisation"
            )
        else:
            network(torch.zeros(1, *image), 0)
            assert job(protocol, backbone="resnet10", batch_size=1)
    assert job(batch_size=1)


def few(images, backbone):
    """A strategy on tasks of one class each."""
    tasks = tuple(replace(task, classes=task.classes[:1]) for task in protocols.get("split-digits").tasks)
    chosen = job(train_per_class=images, test_per_class=2, backbone=backbone)
    recipe = recipe_of(chosen.settings)
    protocol = replace(protocols.get("split-digits"), tasks=tasks)
    stream = build_stream(protocol, recipe, 1, data_dir=None, device=torch.device("cpu"))
    return assemble(chosen, stream), one_class_tasks(protocol, 1, replace(recipe, tasks=2))


def test_a_task_of_one_image_is_refused_alike_and_one_of_one_class_is_named():
    with pytest.raises(UserError, match="a task with one training image: backbone 'resnet10' normalises single pixels"):
        few(1, "resnet10")
    assert few(1, "digits")
    note = few(2, "resnet10")[1]
    assert note.endswith("one class in a task is right for every image, so accuracy is 100 % untrained")
    assert len(note.split(":")[0].split(", ")) == 2
    assert one_class_tasks(CIFAR, 1, RECIPE) is None


def test_too_few_epochs_for_a_last_phase_are_remarked():
    for method, own in (("individual-svd", {"recovery": 0.4}), ("cacl", {"prune_at": 0.6})):
        remarks = [make(method=method, epochs=epochs, **own)[0].method.diagnostics()["remarks"] for epochs in (1, 5)]
        assert "too few epochs a task for any to train after" in remarks[0][0]
        assert remarks[1] == []
