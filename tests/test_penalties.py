"""SI, MAS and LwF against closed forms (S1, S2, M1, L1, L2 of the baselines' invariants)."""

import pytest
import torch
from avalanche.core import SupervisedPlugin
from short_runs import make, trained, weights
from torch import nn

from benchsuite.data.batches import Batches
from benchsuite.errors import UserError
from benchsuite.methods.mas import MAS
from benchsuite.nn.conditional import shared_parameters
from benchsuite.nn.multihead import MultiHead
from benchsuite.settings import resolve

PLAIN = {"optimizer": "sgd", "lr": 1e-3, "dropout": 0.0, "batch_size": 48}


def loss_of(strategy, experience):
    x, y, _ = next(iter(Batches([experience.images], [0], 1000, augmentation=None)))
    with torch.no_grad():
        return nn.functional.cross_entropy(strategy.model.eval()(x, 0), y).item()


def test_the_path_of_si_sums_up_to_the_drop_of_the_loss():
    """For plain gradient descent in small steps; the head, which is not held, takes its own share and is frozen here."""

    class Path(SupervisedPlugin):
        def before_training_exp(self, strategy, **kwargs):
            for p in strategy.model.heads.parameters():
                p.requires_grad_(False)

        def after_training_epoch(self, strategy, **kwargs):
            self.total = sum(w.sum().item() for w in strategy.method.path.values())

    path = Path()
    strategy, stream = make(path, method="si", epochs=20, **PLAIN)
    strategy.model.add_task(0)
    before = loss_of(strategy, stream.train[0])
    strategy.train(stream.train[0], eval_streams=[])
    drop = before - loss_of(strategy, stream.train[0])
    assert drop > 0
    assert path.total == pytest.approx(drop, rel=0.1)


def test_importance_of_si_is_never_negative_and_somewhere_positive_on_a_cpu():
    strategy, _ = trained(method="si", tasks=2)
    everything = torch.cat([t.flatten() for t in strategy.method.importance.values()])
    assert everything.min() == 0
    assert everything.max() > 0
    assert strategy.method.importance.keys() == dict(strategy.model.backbone.named_parameters()).keys()


def test_the_path_of_si_does_not_see_the_penalty():
    """With a penalty that dwarfs the loss the path is still that of the loss alone."""

    class Gradients(SupervisedPlugin):
        def __init__(self):
            super().__init__()
            self.kept, self.total = [], []

        def after_backward(self, strategy, **kwargs):
            name, p = next(iter(strategy.model.backbone.named_parameters()))
            self.kept.append(strategy.method._before[name][0].clone())
            self.total.append(p.grad.clone())

    seen = Gradients()
    strategy, stream = make(seen, method="si", strength=100.0, epochs=1, **PLAIN)
    strategy.train(stream.train[0], eval_streams=[])
    assert all(map(torch.equal, seen.kept, seen.total))  # no penalty in the first task
    seen.kept.clear(), seen.total.clear()
    for importance in strategy.method.importance.values():
        importance.fill_(1.0)
    strategy.train(stream.train[1], eval_streams=[])
    assert torch.equal(seen.kept[0], seen.total[0])  # at the anchor
    with torch.no_grad():
        next(strategy.model.backbone.parameters()).add_(1.0)
    strategy.method.before_training_exp = lambda *_, **__: None  # the anchor stays where it was
    strategy.train(stream.train[2], eval_streams=[])
    assert (seen.total[-1] - seen.kept[-1]).abs().mean() > 100 * seen.kept[-1].abs().mean()


class Listed(list):
    """Batches of 20 images."""

    labels = torch.zeros(20)


def test_importance_of_mas_on_a_linear_network_is_the_closed_form():
    """z = W x: d ||z||^2 / d W_cd = 2 z_c x_d, its absolute value averaged over the images."""

    class Linear(nn.Linear):
        features = 3

        def forward(self, x):
            return super().forward(x.flatten(1))

    torch.manual_seed(0)
    model = MultiHead(Linear(4, 3, bias=False), classes=[3])
    model.add_task(0)
    with torch.no_grad():
        model.heads["0"].weight.copy_(torch.eye(3))
        model.heads["0"].bias.zero_()
    x = torch.randn(20, 1, 2, 2)

    method = MAS()
    method.model = model
    batches = Listed([[x[:7], x[:7], 0], [x[7:], x[7:], 0]])
    ours = method.sensitivity(0, batches)
    z = model(x, 0)
    expected = (2 * z[:, :, None] * x.flatten(1)[:, None, :]).abs().mean(0)
    assert torch.allclose(ours["weight"], expected, atol=1e-5)
    signed = (2 * z[:, :, None] * x.flatten(1)[:, None, :]).mean(0).abs()  # control: averaging first cancels signs
    assert not torch.allclose(ours["weight"], signed, rtol=0.1)


def test_the_importance_pass_of_mas_leaves_batch_normalisation_alone():
    strategy, stream = trained(method="mas", backbone="resnet18", batchnorm="shared", epochs=1)
    before = {name: t.clone() for name, t in strategy.model.state_dict().items()}
    strategy.method.sensitivity(0, Batches([stream.train[0].images], [0], 16, augmentation=None))
    assert all(torch.equal(before[name], t) for name, t in strategy.model.state_dict().items())


@pytest.mark.parametrize("method", ["si", "mas", "lwf"])
def test_strength_zero_is_fine_tuning(method):
    plain = weights(trained(tasks=2)[0].model)
    assert torch.equal(weights(trained(method=method, tasks=2, strength=0.0)[0].model), plain)
    assert not torch.equal(weights(trained(method=method, tasks=2, strength=10.0)[0].model), plain)


class Teacher(SupervisedPlugin):
    """What the teacher is like in training, and the distillation loss and its gradient at the first step of a task."""

    def __init__(self):
        super().__init__()
        self.first, self.snapshots, self.modes = {}, {}, set()

    def before_backward(self, strategy, **kwargs):
        method, task = strategy.method, strategy.experience.current_experience
        self.modes.add(method.teacher.training)
        self.modes |= {p.requires_grad for p in method.teacher.parameters()}
        state = weights(method.teacher)
        assert torch.equal(self.snapshots.setdefault(task, state), state)
        if task and task not in self.first:
            loss = method.distillation(strategy, task)
            held = list(shared_parameters(strategy.model.backbone).values())
            gradients = torch.autograd.grad(loss, held, retain_graph=True)
            self.first[task] = loss.item(), max(g.abs().max().item() for g in gradients)


@pytest.mark.parametrize("backbone", [{"dropout": 0.0}, {"backbone": "resnet18", "batchnorm": "frozen_after_first"}])
def test_the_teacher_of_lwf_is_fixed_and_agrees_at_the_start(backbone):
    teacher = Teacher()
    trained(teacher, method="lwf", tasks=3, epochs=2, **backbone)
    assert teacher.modes == {False}
    assert teacher.first.keys() == {1, 2}
    for loss, gradient in teacher.first.values():
        assert abs(loss) < 1e-6
        assert gradient < 1e-5


def test_with_dropout_the_pupil_differs_from_its_teacher():
    """Control to the one above: the loss is not zero for want of anything to compare."""
    teacher = Teacher()
    trained(teacher, method="lwf", tasks=2, epochs=1, dropout=0.5)
    assert teacher.first[1][0] > 1e-4


def test_lwf_is_the_formula():
    strategy, stream = trained(method="lwf", tasks=1, dropout=0.0, temperature=3.0, lr=0.02)
    seen = {}

    class Compare(SupervisedPlugin):
        def before_backward(self, strategy, **kwargs):
            x, method = strategy.mb_x, strategy.method
            with torch.no_grad():
                q = (method.teacher(x, 0) / 3).softmax(1)
                p = (strategy.model(x, 0) / 3).softmax(1)
                seen["formula"] = 9 * (q * (q / p).log()).sum(1).mean().item()
            strategy.model(x, 1)  # puts the features of this batch back
            seen["ours"] = method.distillation(strategy, 1).item()

    strategy.plugins.insert(0, Compare())
    strategy.train(stream.train[1], eval_streams=[])
    assert seen["ours"] == pytest.approx(seen["formula"], rel=1e-3)
    assert seen["ours"] > 1e-3


def test_lwf_says_why_it_does_not_run_with_normalisation_by_task():
    with pytest.raises(UserError, match="batchnorm=per_task"):
        resolve("split-digits", "smoke", "lwf", 1, overrides={"backbone": "resnet18"})
