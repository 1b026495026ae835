"""SI, MAS and LwF, and the terms of EWC, against closed forms (S1, S2, M1, L1, L2 of the baselines' invariants)."""

import copy

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import SynapticIntelligencePlugin
from short_runs import make, trained, weights
from torch import nn

from benchsuite.errors import UserError
from benchsuite.methods.mas import MAS
from benchsuite.nn.conditional import shared_parameters
from benchsuite.nn.multihead import MultiHead
from benchsuite.training.batches import Batches
from benchsuite.training.settings import resolve

PLAIN = {"optimizer": "sgd", "lr": 1e-3, "dropout": 0.0, "batch_size": 48}


class Added(SupervisedPlugin):
    """The gradient that a method adds to that of the loss, and the weights it does so at, for each step of the latest task;
    the path of SI through that task, and where it started. All of the backbone, as one vector."""

    def before_training_exp(self, strategy, **kwargs):
        self.steps, self.path, self.start = [], 0.0, weights(strategy.model.backbone)

    def before_backward(self, strategy, **kwargs):
        self.here, held = weights(strategy.model.backbone), list(strategy.model.backbone.parameters())
        self.plain = flat(torch.autograd.grad(strategy.criterion(), held, retain_graph=True))

    def after_backward(self, strategy, **kwargs):
        self.steps.append((self.here, flat(p.grad for p in strategy.model.backbone.parameters()) - self.plain))

    def after_update(self, strategy, **kwargs):
        self.path = self.path - self.plain * (weights(strategy.model.backbone) - self.here)


def flat(tensors):
    return torch.cat([t.detach().flatten() for t in tensors])


def learn(method, importance, tasks=3, **settings):
    """Trains tasks; after each, importance(strategy, experience, added) and the weights, beside the steps of that task."""
    added = Added()
    strategy, stream = make(added, method=method, dtype=torch.float64, dropout=0.0, lr=0.01, epochs=1, **settings)
    for experience in stream.train[:tasks]:
        strategy.train(experience, eval_streams=[])
        yield added.steps, importance(strategy, experience, added), weights(strategy.model.backbone)


def agree(steps, terms):
    """Each step added sum_k A_k (theta - a_k) to the gradient, for terms (A_k, a_k)."""
    for theta, gradient in steps:
        expected = sum((a * (theta - anchor) for a, anchor in terms), torch.zeros_like(theta))
        assert torch.allclose(gradient, expected, rtol=1e-8, atol=1e-12)
    assert not terms or gradient.abs().max() > 1e-4  # control: there is something to compare


def images_of(experience):
    task = experience.current_experience
    return task, Batches([experience.images], [task], 32, augmentation=None, dtype=torch.float64)


def test_every_earlier_task_holds_the_weights_of_ewc_by_lambda_times_its_fisher():
    def fisher(strategy, experience, added):
        return flat(strategy.method.information(*images_of(experience)).values())

    terms = []
    for steps, new, anchor in learn("ewc", fisher, strength=30.0, fisher="exact"):
        agree(steps, terms)
        terms.append((30.0 * new, anchor))


def test_online_ewc_holds_the_weights_to_the_latest_by_a_sum_that_decays():
    """Fbar_t = gamma Fbar_{t-1} + F^t, with the weights after task t - 1 as its only anchor."""

    def fisher(strategy, experience, added):
        return flat(strategy.method.information(*images_of(experience)).values())

    terms, total = [], 0.0
    for steps, new, anchor in learn("ewc", fisher, mode="online", decay=0.5, strength=30.0, fisher="exact"):
        agree(steps, terms)
        total = 0.5 * total + new
        terms = [(30.0 * total, anchor)]


def test_mas_holds_the_weights_by_the_average_of_the_importances():
    def sensitivity(strategy, experience, added):
        return flat(strategy.method.sensitivity(*images_of(experience)).values())

    terms, average = [], None
    for steps, new, anchor in learn("mas", sensitivity, strength=3.0, average=0.2):
        agree(steps, terms)
        average = new if average is None else 0.8 * average + 0.2 * new
        terms = [(2 * 3.0 * average, anchor)]


def test_si_holds_the_weights_by_their_paths_over_how_far_they_came():
    """Omega = sum over tasks of max(0, w) / (delta^2 + xi), from the path w and the displacement delta as seen from outside."""

    def share(strategy, experience, added):
        displacement = weights(strategy.model.backbone) - added.start
        assert displacement.square().mean() > 1e-5  # control: it counts beside xi
        return added.path.clamp_min(0) / (displacement**2 + 1e-5)

    terms, omega = [], 0.0
    for steps, new, anchor in learn("si", share, strength=0.7, damping=1e-5):
        agree(steps, terms)
        omega = omega + new
        terms = [(2 * 0.7 * omega, anchor)]


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
    theirs = SynapticIntelligencePlugin(si_lambda=1.0)  # control: Avalanche's takes the live weights for their past values
    trained(theirs)
    assert not any(importance.data.any() for importance in theirs.ewc_data[1].values())


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
    strategy, stream = trained(method="mas", backbone="resnet18", width=0.25, batchnorm="shared", epochs=1)
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
            held = [p for p in shared_parameters(strategy.model.backbone).values() if p.requires_grad]
            gradients = torch.autograd.grad(loss, held, retain_graph=True)
            self.first[task] = loss.item(), max(g.abs().max().item() for g in gradients)


@pytest.mark.parametrize(
    "backbone", [{"dropout": 0.0}, {"backbone": "resnet18", "width": 0.25, "batchnorm": "frozen_after_first"}]
)
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


class Distilled(SupervisedPlugin):
    """What LwF adds to the loss at each step, and what the formula says: alpha = 2.5, tau = 3, over all old heads."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def after_training_exp(self, strategy, **kwargs):
        self.teacher = copy.deepcopy(strategy.model).eval()

    @torch.no_grad()
    def before_backward(self, strategy, **kwargs):
        x, task, formula = strategy.mb_x, strategy.experience.current_experience, []
        for k in range(task):
            q, p = ((model(x, k) / 3).softmax(1) for model in (self.teacher, strategy.model))
            formula.append(2.5 * 9 * (q * (q / p).log()).sum(1).mean().item())
        self.steps.append((task, (strategy.loss - strategy.criterion()).item(), formula))


def test_lwf_distils_every_old_head_by_the_formula():
    seen = Distilled()
    settings = {"dropout": 0.0, "lr": 0.02, "temperature": 3.0, "strength": 2.5, "epochs": 1}
    trained(seen, method="lwf", tasks=3, dtype=torch.float64, **settings)
    for _, ours, formula in seen.steps:
        assert ours == pytest.approx(sum(formula), rel=1e-6, abs=1e-10)
    task, _, formula = seen.steps[-1]
    assert task == 2
    assert min(formula) > 1e-3  # control: either head counts


def test_lwf_says_why_it_does_not_run_with_normalisation_by_task():
    with pytest.raises(UserError, match="batchnorm=per_task"):
        resolve("split-digits", "smoke", "lwf", 1, overrides={"backbone": "resnet18"})
