"""What a run counts: bytes between two steps and between two tasks, and images computed."""

import gc

import pytest
import torch
from avalanche.core import SupervisedPlugin
from torch.func import functional_call, grad, jacrev, vmap

from benchsuite.analysis.leaderboard import leaderboard
from benchsuite.method import Method, register
from benchsuite.methods import delta_svd
from benchsuite.nn.computed import Images, uncounted
from benchsuite.nn.conditional import evaluating
from benchsuite.nn.multihead import MultiHead
from benchsuite.record import schema
from benchsuite.training.accounting import bytes_of, run_alone, tensors_in, training_state
from benchsuite.training.runner import CARRIED, RunFailed, run
from benchsuite.training.settings import resolve

IMAGES = 48  # of each task
TINY = {"tasks": 3, "train_per_class": IMAGES // 2, "test_per_class": 20, "epochs": 2, "batch_size": 16}


def job_of(method, **settings):
    return resolve("split-digits", "smoke", method, 1, overrides=TINY | settings)


class Sight(SupervisedPlugin):
    """The strategy, and a copy of the network after every epoch, which is the observer's own."""

    def __init__(self):
        super().__init__()
        self.copies = []

    def after_training_epoch(self, strategy, **kwargs):
        self.strategy = strategy
        self.copies.append([p.detach().clone() for p in strategy.model.parameters()])
        task = strategy.experience.current_experience  # a computation of its own
        with evaluating(strategy.model):
            torch.autograd.grad(strategy.model(strategy.mb_x, task).sum(), strategy.model.heads[str(task)].weight)


def size(*modules):
    return sum(4 * p.numel() for module in modules for p in module.parameters())


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("finetune", lambda model: 0),
        ("individual", lambda model: size(*list(model.backbone.models.values())[:-1])),
        ("ewc", lambda model: 2 * size(model.backbone)),  # the Fisher information and the anchor
        ("mas", lambda model: 2 * size(model.backbone)),
        ("si", lambda model: 5 * size(model.backbone)),
        ("lwf", lambda model: size(model)),  # the teacher
    ],
)
def test_training_bytes_are_exact(method, more, tmp_path):
    bystander = torch.zeros(10**6)  # of other code in this process
    sight = Sight()
    record = run(job_of(method), results=tmp_path, plugins=[sight])
    model = sight.strategy.model
    backbone = list(model.backbone.models.values())[-1] if method == "individual" else model.backbone
    learns = [*backbone.parameters(), *model.heads["2"].parameters()]
    if method == "lwf":
        learns = list(model.parameters())
    adam = sum(2 * 4 * p.numel() + 4 for p in learns)
    gradients = sum(4 * p.numel() for p in learns)
    dense = size(backbone, model.heads)
    assert record.training_state_bytes == dense + gradients + adam + more(model)
    assert bytes_of([bystander]) == 4 * 10**6


class Hides(Method):
    """Fine-tuning that keeps a tensor of a thousand numbers in a closure."""

    def before_training_exp(self, strategy, **kwargs):
        kept = torch.ones(1000)
        self.model.backbone.register_forward_hook(lambda *_: kept.sum() and None)


@pytest.mark.parametrize("size", [1, 10**6])
def test_what_a_method_needs_until_it_prunes_is_counted(size, tmp_path, own_methods):
    @register
    class Shrinks(Method):
        """Holds a tensor, and needs as much again within a step, until half of a task's epochs are over."""

        def before_training_exp(self, strategy, **kwargs):
            self.held = torch.zeros(size, dtype=torch.uint8)

        def before_training_iteration(self, strategy, **kwargs):
            if self.held is not None:
                self.held.clone()

        def after_training_epoch(self, strategy, **kwargs):
            if 2 * strategy.clock.train_exp_epochs >= strategy.train_epochs:
                self.held = None

    plain, shrinking = (run(job_of(name, epochs=4), results=tmp_path) for name in ("finetune", "shrinks"))
    assert shrinking.training_state_bytes == plain.training_state_bytes + size
    assert (max(shrinking.memory.peak) >= 10**6) is (size > 1)


def test_a_tensor_in_a_closure_counts(own_methods, tmp_path):
    register(Hides)
    counted = {name: run(job_of(name, tasks=1), results=tmp_path).training_state_bytes for name in ("finetune", "hides")}
    assert counted["hides"] == counted["finetune"] + 4000
    sight = Sight()
    run(job_of("hides", tasks=1), results=tmp_path / "again", plugins=[sight])
    assert training_state(sight.strategy) == counted["finetune"]  # control: by what the strategy refers to, it is not found


def test_garbage_and_what_was_there_before_do_not_count_and_the_collector_is_left_as_it_was():
    frozen = gc.get_freeze_count()
    before = torch.zeros(7)
    with run_alone():
        loop = [torch.zeros(8)]
        loop.append(loop)
        del loop
        since = torch.zeros(9)
        from benchsuite.training import accounting

        found = [o for o in accounting.made_since() if isinstance(o, torch.Tensor)]
        assert [len(t) for t in found] == [9]
        with pytest.raises(RuntimeError, match="within another one"), run_alone():
            pass
    assert (len(before), len(since), gc.get_freeze_count()) == (7, 9, frozen)


N = IMAGES * 3 * 2  # of three tasks and two epochs


@pytest.mark.parametrize(
    ("method", "settings", "forward", "backward"),
    [
        ("finetune", {}, N, N),
        ("er", {"budget": 1.0}, N + N * 2 // 3, N + N * 2 // 3),  # as many stored images in each step after the first task
        ("ewc", {}, N + 2 * 3 * IMAGES, N + 3 * IMAGES),  # the distribution of labels, then a gradient, for each image
        ("ewc", {"fisher": "exact"}, N + 3 * 3 * IMAGES, N + 2 * 3 * IMAGES),  # two classes
        ("lwf", {}, N + N * 2 // 3, N),  # the teacher
        ("packnet", {}, N, N),
        ("hat", {}, N, N),  # its diagnostic is no part of the method
        ("delta-svd", {"whiten": False}, N, N),
        ("delta-svd", {}, N + 2 * IMAGES, N),  # the moments of the inputs
        ("delta-svd", {"reference": "nearest"}, N + (2 + 1 + 2) * IMAGES, N),  # and features of the first and of two networks
        ("finetune+checkpointing", {}, N, N),  # what is computed again is not counted
    ],
)
def test_images_are_counted_where_the_network_is_called(method, settings, forward, backward, tmp_path):
    record = run(job_of(method, **settings), results=tmp_path, plugins=[Sight()])
    assert (record.forward_images, record.backward_images) == (forward, backward)
    compute = leaderboard([record]).training_memory["compute"][0]
    assert compute == (forward + 2 * backward) / (3 * N)
    assert (compute == 1) == ((forward, backward) == (N, N))


def test_delta_svd_looks_at_no_more_images_than_it_says(tmp_path, monkeypatch):
    monkeypatch.setattr(delta_svd, "MOMENTS", 7)
    monkeypatch.setattr(delta_svd, "NEAREST", 5)
    record = run(job_of("delta-svd", reference="nearest"), results=tmp_path, plugins=[Sight()])
    assert (record.forward_images, record.backward_images) == (N + 2 * 7 + (1 + 2) * 5, N)  # above, of the whole task


def test_lanes_and_repeated_backward_passes_count_and_other_work_does_not():
    model = MultiHead.build("digits", image=(1, 8, 8), classes=[2])
    model.add_task(0)
    x, parameters = torch.rand(6, 1, 8, 8), dict(model.named_parameters())
    images = Images()

    def loss(p, image):
        return functional_call(model, p, (image[None], 0)).sum()

    def counted(function):
        before = images.forward, images.backward
        with images.counting():
            function()
        return images.forward - before[0], images.backward - before[1]

    assert counted(lambda: vmap(grad(loss), in_dims=(None, 0))(parameters, x)) == (6, 6)
    assert counted(lambda: jacrev(lambda p: functional_call(model, p, (x, 0))[:, 0].sum()[None])(parameters)) == (6, 6)

    def twice():
        y = model(x, 0).sum()
        y.backward(retain_graph=True)
        y.backward()

    assert counted(twice) == (6, 12)
    with torch.no_grad():
        assert counted(lambda: model(x, 0)) == (6, 0)
    assert counted(lambda: model.requires_grad_(False).embed(x, 0)) == (6, 0)
    assert counted(uncounted()(lambda: model(x, 0))) == (0, 0)
    model(x, 0)
    assert counted(lambda: None) == (0, 0)


def test_a_new_backbone_is_counted_and_one_inside_it_only_once():
    model = MultiHead.build("digits", image=(1, 8, 8), classes=[2])
    inner = model.backbone
    model.backbone = torch.nn.Sequential(inner)
    model.add_task(0)
    images = Images()
    with images.counting():
        model.embed(torch.rand(5, 1, 8, 8), 0)
    assert images.forward == 5


class Stop(KeyboardInterrupt):
    pass


def stopped(job, results):
    """The path and content of the checkpoint after the second task."""

    def stop(event):
        if event.stage == 2:
            raise Stop

    with pytest.raises(Stop):
        run(job, results=results, report=stop)
    path = results / job.folder / "checkpoint.pt"
    return path, torch.load(path, weights_only=True)


STORED = {"er": 20 * 64, "agem": 20 // 5 * 64}  # bytes of the first task's images: the budget is 20, A-GEM plans for five tasks


@pytest.mark.parametrize(
    "method",
    [
        *("finetune", "individual", "ewc", "si", "lwf", "packnet", "hat", "lance", "cacl", "delta-svd"),
        *STORED,  # refilled from the data set, see also tests/methods/test_replay.py
    ],
)
@pytest.mark.slow
def test_what_is_carried_is_all_that_is_needed_and_all_of_it_is_needed(method, tmp_path):
    settings = {"calibration_batches": 2} if method == "lance" else {}
    job = job_of(method, epochs=1, reset_optimizer=method not in ("finetune", "ewc"), **settings)
    whole = run(job, results=tmp_path / "whole")
    path, content = stopped(job, tmp_path)
    carried = {name: content[name] for name in CARRIED if name in content}
    assert content["progress"]["carried_bytes"] == bytes_of(tensors_in(carried)) + STORED.get(method, 0)
    assert not list(tensors_in({name: value for name, value in content.items() if name not in CARRIED}))
    assert whole.carried_bytes >= content["progress"]["carried_bytes"]

    def resumed():
        try:
            return run(job, results=tmp_path)
        except RunFailed:
            return None

    assert schema.differences(resumed(), whole) == []
    for name, part in carried.items():
        tensors = [t for t in tensors_in(part) if t.any()]
        if not tensors:
            continue
        path.parent.joinpath("record.json").unlink(missing_ok=True)
        largest = max(tensors, key=lambda t: t.numel())
        kept = largest.clone()
        largest.zero_()  # control: without it the run goes another way
        torch.save(content, path)
        largest.copy_(kept)
        record = resumed()
        assert record is None or not schema.same_numbers(record, whole), name


def test_carried_bytes_contain_the_stored_images_and_joint_training_has_none(tmp_path):
    plain, replay, joint = (run(job_of(name, epochs=1), results=tmp_path) for name in ("finetune", "er", "joint"))
    assert replay.carried_bytes == plain.carried_bytes + replay.memory_bytes > plain.carried_bytes
    assert joint.carried_bytes is None


class Asks(Method):
    def before_training_exp(self, strategy, **kwargs):
        if strategy.experience.current_experience == 0:
            assert self.run.n_tasks == 5


def test_a_method_that_asks_for_the_number_of_tasks_is_marked(own_methods, tmp_path):
    register(Asks)
    records = [run(job_of(name, epochs=1), results=tmp_path) for name in ("finetune", "asks", "agem")]
    assert [record.n_tasks_read for record in records] == [False, True, True]
    stopped(job_of("asks", epochs=1), tmp_path / "resumed")  # asked before the interruption
    assert run(job_of("asks", epochs=1), results=tmp_path / "resumed").n_tasks_read
