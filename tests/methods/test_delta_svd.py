"""Invariants of delta-svd. Each stands beside a control that breaks it."""

import math
from contextlib import contextmanager

import pytest
import torch
from avalanche.core import SupervisedPlugin
from short_runs import make, trained
from torch import nn
from torch.nn import functional as F

from benchsuite.checks import contract
from benchsuite.checks.contract import BATCHNORM, OPTIMIZERS, Broken, ShortRuns
from benchsuite.errors import UserError
from benchsuite.method.artifact import Artifact
from benchsuite.methods import delta_svd
from benchsuite.methods.delta_svd import (
    DENSE,
    DeltaSVD,
    Stored,
    bytes_of_rank,
    decode,
    encode,
    energy_of,
    factors,
    rank_by,
    ranks_within,
    rounded,
    separation,
    size_of,
    spectrum,
)
from benchsuite.nn.decompose import second_moments
from benchsuite.nn.multihead import MultiHead

EXACT = {"bits": 32, "budget": 100.0, "recovery": 0.0}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moment(n, samples, seed=1):
    x = normal(samples, n, seed=seed) @ torch.diag(torch.logspace(0, -2, n, dtype=torch.float64))
    return x.T @ x / samples


@torch.no_grad()
def logits(model, task):
    x = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    model.eval()
    out = model(x, task)
    model.train()
    return out


def served(strategy):
    return DeltaSVD.restore(Artifact.from_bytes(strategy.method.artifact().to_bytes()))


class Trained(SupervisedPlugin):
    """The kernels at the end of each task, before the method stores them."""

    def __init__(self):
        super().__init__()
        self.kernels = []

    def after_training_epoch(self, strategy, **kwargs):
        if strategy.clock.train_exp_epochs == strategy.recipe.epochs - 1:
            layers = strategy.method.layers.items()
            self.kernels.append({name: layer.trained().clone() for name, layer in layers})


# Stored numbers


@pytest.mark.parametrize("bits", [3, 4, 5, 6, 7, 8, 32])
def test_what_is_encoded_is_what_was_trained_and_takes_the_bytes_of_the_formula(bits):
    rows = normal(5, 37).float() * torch.tensor([1, 1e-3, 0, 10, 1.0])[:, None]
    content = encode(rows, bits)
    assert len(content) == size_of((5, 37), bits) == (4 * 185 if bits == 32 else 10 + math.ceil(185 * bits / 8))
    back = decode(content, (5, 37), bits)
    torch.testing.assert_close(back, rounded(rows, bits), rtol=1e-6, atol=0)
    steps = rows.abs().amax(1, keepdim=True) * (1 + 2**-10) / (2 ** (bits - 1) - 1)
    assert ((back - rows).abs() <= steps / 2 * (1 + 1e-5)).all()
    other = 32 if bits == 3 else 3
    assert not torch.equal(decode(encode(rows, other), (5, 37), other), back)  # control


def test_the_gradient_passes_straight_through_the_rounding():
    rows = normal(3, 9).requires_grad_()
    (rounded(rows, 4) * torch.arange(9)).sum().backward()
    assert torch.equal(rows.grad, torch.arange(9, dtype=torch.float64).expand(3, 9))
    assert not torch.equal(rounded(rows, 4), rows)  # control


@pytest.mark.parametrize("settings", [{}, BATCHNORM])
def test_the_first_task_is_finetune_stored_in_int8(settings):
    plain, _ = trained(method="finetune", **settings)
    strategy, _ = trained(method="delta-svd", **settings)
    artifact = Artifact.of_network(plain.model)
    whole = {form: Artifact.from_bytes(artifact.encoded(form, {}).to_bytes()).network() for form in ("int8", "int6")}
    out = logits(served(strategy), 0)
    assert torch.equal(out, logits(whole["int8"], 0))
    assert not torch.equal(out, logits(whole["int6"], 0))
    assert not torch.equal(out, logits(plain.model, 0))


@pytest.mark.parametrize("settings", [{}, {**BATCHNORM, "train_per_class": 8}])
def test_exact_and_without_a_budget_each_task_is_what_fine_tuning_learns(settings):
    def learnt(method, **more):
        strategy, stream = make(method=method, **settings, **more)
        found = []
        for task, experience in enumerate(stream.train[:3]):
            strategy.train(experience, eval_streams=[])
            found.append(logits(strategy.model, task))
        return found, strategy

    (plain, _), (exact, strategy), (coarse, _) = learnt("finetune"), learnt("delta-svd", **EXACT), learnt("delta-svd")
    assert all(map(torch.equal, plain, exact))
    assert all(map(torch.equal, plain, [logits(served(strategy), task) for task in range(3)]))
    assert not any(map(torch.equal, plain, coarse))  # control


@pytest.mark.parametrize(
    ("reference", "optimizer", "policy"),
    [
        *(("previous", "sgd", ""), ("previous", "momentum and decay", "")),
        *(("nearest", "adamw and decay", ""), ("first", "adam", "")),
        *(("previous", "adamw and decay", policy) for policy in ("per_task", "frozen_after_first", "batch_stats")),
    ],
)
def test_the_file_alone_serves_what_the_live_network_computes_and_no_task_depends_on_a_later_one(reference, optimizer, policy):
    settings = {**OPTIMIZERS[optimizer], "reset_optimizer": False, "epochs": 3, "recovery": 0.4}
    settings = {**BATCHNORM, **settings, "batchnorm": policy} if policy else settings
    strategy, stream = make(method="delta-svd", reference=reference, **settings)
    seen = []
    for task, experience in enumerate(stream.train[:4]):
        strategy.train(experience, eval_streams=[])
        seen.append(logits(strategy.model, task))
        assert all(torch.equal(logits(strategy.model, i), before) for i, before in enumerate(seen))
    alone = served(strategy)
    assert all(torch.equal(logits(alone, task), before) for task, before in enumerate(seen))
    stored = strategy.method.stored
    assert {"previous": [-1, 0, 1, 2], "first": [-1, 0, 0, 0]}.get(reference, stored.parents) == stored.parents
    stored.tensors["weights/1"] = stored.tensors["weights/1"] ^ 1  # control: a task depends on those of its path
    changed = {task for task in range(4) if not torch.equal(logits(served(strategy), task), seen[task])}
    assert changed == {task for task in range(4) if 1 in stored.path(task)}


def test_a_kernel_is_summed_in_double_precision_and_rounded_once():
    strategy, _ = trained(method="delta-svd", tasks=3, bits=8)
    stored, single = strategy.method.stored, []
    for name in stored.shapes:
        total, rough = torch.zeros(1, dtype=torch.float64), torch.zeros(1)
        for task in range(3):
            parts = stored.parts(name, task)
            doubles = {part: rows.double() for part, rows in parts.items()}
            if "A" in parts:  # another order of summation
                total = total + sum(torch.outer(a, b) for a, b in zip(doubles["A"], doubles["B"], strict=True))
                rough = torch.addmm(rough, parts["A"].T, parts["B"])
            elif parts:
                total, rough = total + doubles["D"], rough + parts["D"]
        assert torch.equal(stored.kernel(name, 2), total.float())
        single.append(torch.equal(stored.kernel(name, 2), rough))
    assert not all(single)  # control: in single precision the order shows


@pytest.mark.parametrize("bits", [4, 6])
def test_the_size_is_the_formula(bits):
    strategy, _ = trained(method="delta-svd", tasks=3, bits=bits)
    artifact, method = strategy.method.artifact(), strategy.method
    sizes, head, biases = artifact.sizes(), strategy.model.heads["0"], sum(rows for rows, _ in method.stored.shapes.values())

    def weights(bits):
        total = sum(2 * rows + rows * columns for rows, columns in method.stored.shapes.values()) + 3 * 2 * biases
        for ranks in artifact.tensors["masks/ranks"].tolist():
            for rank, (rows, columns) in zip(ranks, method.stored.shapes.values(), strict=True):
                if rank == DENSE:
                    total += 2 * rows + math.ceil(rows * columns * bits / 8)
                else:
                    total += 4 * rank + math.ceil(rank * rows * bits / 8) + math.ceil(rank * columns * bits / 8)
        return total

    assert sizes["weights"] == weights(bits) != weights(bits + 1)
    assert sizes["heads"] == 3 * (head.weight.numel() + 2 * 2 * head.out_features)
    assert sizes["masks"] == 2 * 2 * len(method.stored.shapes)
    assert sum(sizes.values()) == len(artifact.to_bytes())


def test_the_network_of_cacl_takes_the_bytes_of_the_specification():
    """390,848 weights in 8 bits and 640 scales; 3,483 numbers for one rank in every layer; 1,280 bytes of biases a task."""
    model = MultiHead.build("cacl", image=(3, 32, 32), classes=[5] * 2)
    stored = Stored.of_network(model.backbone, 8)
    assert sum(bytes_of_rank(shape, DENSE, 8) for shape in stored.shapes.values()) == 390_848 + 2 * 640
    assert sum(sum(shape) for shape in stored.shapes.values()) == 3_483
    assert 2 * sum(stored.shapes[name][0] for name in stored.biased) == 1_280


# The cut


def test_the_whitened_cut_is_that_of_svd_llm_and_needs_no_root_of_the_moment():
    change, s, rank = normal(12, 30), moment(30, 200), 4
    values, vectors = torch.linalg.eigh(s)
    root, inverse = (vectors * values.sqrt()) @ vectors.T, (vectors / values.sqrt()) @ vectors.T
    u, sigma, v = torch.linalg.svd(change @ root, full_matrices=False)
    expected = (u[:, :rank] * sigma[:rank]) @ v[:rank] @ inverse

    def cut(s):
        energy, own = spectrum(change, s)
        parts = factors(change, own, rank, 32, False)
        return energy, parts["A"].T @ parts["B"]

    energy, made = cut(s)
    torch.testing.assert_close(made, expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(energy, sigma.square())
    _, plain = cut(None)
    assert (plain - expected).abs().max() > 0.1  # control
    assert energy_of(change - plain, s) > energy_of(change - made, s)
    assert energy_of(change - plain, None) < energy_of(change - made, None)

    singular = moment(30, 8)  # eight images: a root has no inverse
    assert torch.linalg.matrix_rank(singular) == 8
    energy, made = cut(singular)
    assert int((energy > 0).sum()) == 8
    torch.testing.assert_close(energy_of(change - made, singular), energy[rank:].sum())
    values = torch.linalg.eigvalsh(singular)
    assert values[0] < 1e-12 * values[-1]  # control: S^-1/2 is infinite or noise


@pytest.mark.parametrize("bits", [3, 4, 6, 8])
def test_refitting_never_increases_the_error_of_a_rounded_a(bits):
    change, s = normal(20, 45, seed=bits), moment(45, 300)
    for own in (s, None):
        vectors, errors = spectrum(change, own)[1], {}
        for refit in (True, False):
            parts = factors(change, vectors, 6, bits, refit)
            left = change - rounded(parts["A"], bits).T @ parts["B"]
            errors[refit] = [float(energy_of(left, m)) for m in (s, None)]
        assert all(a <= b * (1 + 1e-12) for a, b in zip(errors[True], errors[False], strict=True))
        assert errors[True][1] < errors[False][1]  # control: without it the rounding of A costs more


def test_ranks_keep_within_the_budget_and_use_it():
    shapes = [(16, 9), (32, 144), (64, 128)]
    gains = [normal(rows, seed=rows).square().sort(descending=True).values for rows, _ in shapes]
    for budget in (0, 50, 400, 1464, 5000):
        ranks = ranks_within(gains, shapes, 6, budget)
        spent = sum(bytes_of_rank(shape, rank, 6) for shape, rank in zip(shapes, ranks, strict=True))
        assert spent <= budget
        for i, (shape, rank) in enumerate(zip(shapes, ranks, strict=True)):  # control: not one component more
            if rank != DENSE:
                more = delta_svd.cheapest(shape, rank + 1)
                assert spent + bytes_of_rank(shape, more, 6) - bytes_of_rank(shape, rank, 6) > budget, i
    assert ranks_within(gains, shapes, 6, 1e6) == [DENSE] * 3
    assert ranks_within([0 * gains[0], *gains[1:]], shapes, 6, 5000)[0] == 0  # nothing where there is nothing to gain
    first = ranks_within([g * (100 if i == 1 else 1) for i, g in enumerate(gains)], shapes, 6, 300)
    assert first == [1, 2, 0]  # the most energy per byte first; then what still fits
    assert ranks_within(gains, shapes, 6, 300) != first  # control
    assert ranks_within(gains, shapes, 6, 300) == [DENSE, 0, 1]  # a small layer's components cost few bytes
    assert gains[0][0] < gains[2][0]  # control: by energy alone the large layer would come first


def test_a_layer_is_dense_from_the_rank_on_whose_factors_are_no_smaller():
    assert delta_svd.cheapest((16, 9), 5) == 5  # 5 x 25 < 144
    assert delta_svd.cheapest((16, 9), 6) == DENSE
    assert delta_svd.cheapest((12, 12), 6) == DENSE  # equal
    energy = torch.tensor([4.0, 2.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    assert [rank_by(energy, share, (5, 400)) for share in (0.1, 0.5, 0.6, 0.75, 0.76, 1.0)] == [1, 1, 2, 2, 3, 4]
    assert rank_by(0 * energy, 0.9, (5, 400)) == 0


@pytest.mark.parametrize("settings", [{"energy": 0.9}, {"budget": 0.03}, {"budget": 0.3}])
def test_what_a_task_stores_follows_the_rule(settings):
    strategy, _ = trained(method="delta-svd", tasks=2, recovery=0.0, **settings)
    shapes, ranks = strategy.method.stored.shapes, strategy.method.stored.ranks[1]
    spent = sum(bytes_of_rank(shape, rank, 6) for shape, rank in zip(shapes.values(), ranks, strict=True))
    budget = settings.get("budget", 1) * sum(map(math.prod, shapes.values()))
    assert spent <= budget
    if "budget" in settings:
        assert spent > budget - 2 * max(bytes_of_rank(shape, 1, 6) for shape in shapes.values())
    else:
        less, _ = trained(method="delta-svd", tasks=2, recovery=0.0, energy=0.3)
        assert all(a <= b or b == DENSE for a, b in zip(less.method.stored.ranks[1], ranks, strict=True))
        assert less.method.stored.ranks[1] != ranks


@pytest.mark.parametrize("whiten", [True, False])
@pytest.mark.parametrize("refit", [True, False])
def test_the_cut_of_a_network_is_the_one_of_the_equations(whiten, refit, monkeypatch):
    found = {}

    @contextmanager
    def watched(layers, rows):
        with second_moments(layers, rows) as moments:
            yield moments
        found.update(moments)

    monkeypatch.setattr(delta_svd, "second_moments", watched)
    watch = Trained()
    settings = {"lr": 0.01, "recovery": 0.0, "budget": 0.1, "whiten": whiten, "refit": refit}
    strategy, _ = trained(watch, method="delta-svd", tasks=2, **settings)
    stored = strategy.method.stored
    changes = {name: kernel.double() - stored.kernel(name, 0).double() for name, kernel in watch.kernels[1].items()}

    def cut(whiten, relative=True):
        spectra, gains = {}, []
        for name, change in changes.items():
            s = found[name] if whiten else torch.eye(change.shape[1], dtype=torch.float64)
            values, vectors = torch.linalg.eigh(change @ s @ change.T)
            spectra[name] = vectors.flip(1)
            whole = watch.kernels[1][name].double()
            gains.append(values.flip(0).clamp_min(0) / (torch.trace(whole @ s @ whole.T) if relative else 1))
        shapes = list(stored.shapes.values())
        return ranks_within(gains, shapes, 6, 0.1 * sum(map(math.prod, shapes))), spectra

    ranks, spectra = cut(whiten)
    assert stored.ranks[1] == ranks
    assert max(ranks) > 0
    assert cut(whiten, relative=False)[0] != ranks  # control
    _, others = cut(not whiten)
    for (name, change), rank in zip(changes.items(), ranks, strict=True):
        parts = stored.parts(name, 1)
        if rank > 0:
            a = spectra[name][:, :rank]
            signs = (a.T * parts["A"]).sum(1).sign()  # an eigenvector has two
            assert torch.allclose(parts["A"].double(), rounded(a.T * signs[:, None], 6), atol=1e-5)
            assert (a * others[name][:, :rank]).sum(0).abs().min() < 0.99  # control: of the other measure
            fitted = torch.linalg.lstsq(parts["A"].T.double(), change).solution
            plain = (a * signs).T @ change
            assert torch.allclose(parts["B"].double(), rounded(fitted if refit else plain, 6), atol=1e-5)
            assert not torch.allclose(parts["B"].double(), rounded(plain if refit else fitted, 6), atol=1e-5)  # control


# The loop


@pytest.mark.parametrize("whiten", [True, False])
def test_errors_add_up_in_the_open_loop_and_not_in_the_closed_one(whiten):
    growth = {}
    for loop in ("closed", "open"):
        watch = Trained()
        settings = {"lr": 0.01, "recovery": 0.0, "budget": 0.03, "whiten": whiten}
        strategy, _ = trained(watch, method="delta-svd", tasks=5, loop=loop, **settings)
        stored = strategy.method.stored
        errors = [
            math.sqrt(sum(float((stored.kernel(name, t) - w).square().sum()) for name, w in kernels.items()))
            for t, kernels in enumerate(watch.kernels)
        ]
        assert errors[0] < 0.1 * errors[1]
        growth[loop] = errors[4] / errors[1]
        recorded = [sum(layers.values()) for layers in strategy.method.diagnostics()["extra"]["relative_error"]]
        assert (recorded[-1] > 1.5 * recorded[0]) == (loop == "open")
    assert growth["closed"] < 1.5
    assert growth["open"] > 1.6
    assert growth["open"] > 1.3 * growth["closed"]


@pytest.mark.parametrize("whiten", [True, False])
def test_the_recorded_error_is_that_of_the_outputs_however_the_kernel_was_cut(whiten):
    watch = Trained()
    strategy, stream = trained(watch, method="delta-svd", tasks=2, recovery=0.0, budget=0.03, whiten=whiten)
    method, kernels = strategy.method, watch.kernels[1]
    name, layer = next(iter(method.layers.items()))  # the first: its inputs are the images
    strategy.experience = stream.train[1]
    images = torch.cat([x for x, *_ in method.some(strategy, delta_svd.MOMENTS)])

    def outputs(kernel):
        return F.conv2d(images, kernel.view(layer.shape), None, layer.stride, layer.padding, layer.dilation)

    left, whole = kernels[name] - method.stored.kernel(name, 1), kernels[name]
    recorded = method.diagnostics()["extra"]["relative_error"][0][name]
    assert recorded == pytest.approx(float(outputs(left).norm() / outputs(whole).norm()), rel=1e-3)
    assert recorded != pytest.approx(float(left.norm() / whole.norm()), rel=0.05)  # control: the error of the kernel


def test_an_open_loop_needs_the_previous_task():
    with pytest.raises(UserError, match="loop=open needs reference=previous"):
        make(method="delta-svd", loop="open", reference="first")


def test_a_budget_beside_an_energy_is_refused():
    for settings in ({"energy": 0.9}, {"budget": 0.2}):
        make(method="delta-svd", **settings)  # control
    with pytest.raises(UserError, match="energy takes the place of budget"):
        make(method="delta-svd", energy=0.9, budget=0.2)


def test_an_open_loop_carries_the_trained_weights_over_a_stop(tmp_path, monkeypatch):
    runs, settings = ShortRuns(tmp_path), {"loop": "open", "recovery": 0.5}
    contract.resumed(runs, "delta-svd", **settings)
    whole = DeltaSVD.state
    monkeypatch.setattr(DeltaSVD, "state", lambda self: whole(self) | {"stored": whole(self)["stored"] | {"raw": {}}})
    with pytest.raises(Broken, match="the records differ"):  # control
        contract.resumed(runs, "delta-svd", **settings)


# The nearest task


def test_the_nearest_task_is_the_one_whose_features_separate_the_classes():
    strategy, stream = trained(method="delta-svd", tasks=2, reference="nearest")
    method, stored = strategy.method, strategy.method.stored
    strategy.experience, found = stream.train[2], []
    for blind in (0, 1):
        kept = stored.tensors[f"weights/{blind}"]
        biases = torch.full((2 * 112,), 0, dtype=torch.uint8)
        biases.view(torch.float16)[:] = -6e4  # no unit is ever active: all features are 0
        stored.tensors[f"weights/{blind}"] = torch.cat([kept[: -len(biases)], biases])
        for layer in method.layers.values():
            layer._task = -1
        found.append(method.nearest(strategy))
        stored.tensors[f"weights/{blind}"] = kept
    assert found == [1, 0]  # whatever is the previous task: the control
    strategy.train(stream.train[2], eval_streams=[])
    assert stored.parents[2] in (0, 1)


def test_separation_leaves_each_image_out_of_its_class_mean():
    labels = torch.arange(40) % 4
    far = torch.nn.functional.one_hot(labels, 4).double() * 10 + 0.1 * normal(40, 4)
    assert separation(far, labels) == 1
    noise = normal(40, 500)
    means = torch.stack([noise[labels == k].mean(0) for k in range(4)])
    assert (torch.cdist(noise, means).argmin(1) == labels).double().mean() == 1  # control: with itself it is always nearest
    assert separation(noise, labels) < 0.5
    assert separation(torch.zeros(40, 8).double(), labels) == 0
    assert separation(far[:3], labels[:3]) == 0  # one image a class


# The recovery


class Recovery(SupervisedPlugin):
    """Trained numbers at each epoch of the second task, and the rates of its steps."""

    def __init__(self):
        super().__init__()
        self.epochs, self.rates, self.states = [], [], []

    def before_training_iteration(self, strategy, **kwargs):
        if strategy.experience.current_experience == 1:
            self.rates.append(strategy.optimizer.param_groups[0]["lr"])
            self.states.append(any("momentum_buffer" in s or "exp_avg" in s for s in strategy.optimizer.state.values()))
            if strategy.clock.train_epoch_iterations == 0:
                self.epochs.append({name: p.detach().clone() for name, p in strategy.model.named_parameters()})

    def after_training_epoch(self, strategy, **kwargs):
        if strategy.experience.current_experience == 1:
            self.last = {name: p.detach().clone() for name, p in strategy.model.named_parameters()}


def moved(before, after):
    return {name for name, p in before.items() if not torch.equal(p, after[name])}


@pytest.mark.parametrize("settings", [{}, BATCHNORM])
def test_after_the_cut_only_factors_and_the_head_are_trained(settings):
    watch = Recovery()
    settings = {**settings, "epochs": 5, "lr": 0.01, "recovery": 0.4, "train_per_class": 24, "milestones": (1,)}
    trained(watch, method="delta-svd", tasks=2, **settings)
    kinds = {name.rpartition(".")[2] for name in moved(watch.epochs[3], watch.last)}
    heads = {name for name in moved(watch.epochs[3], watch.last) if name.startswith("heads")}
    assert heads == {"heads.1.weight", "heads.1.bias"}
    assert {name for name in moved(watch.epochs[3], watch.last) if "parts" not in name} == heads
    assert kinds <= {"A", "B", "D", "weight", "bias"}
    assert {"A", "B"} <= kinds
    dense = moved(watch.epochs[0], watch.epochs[1])  # control: before the cut, biases or normalisation are trained
    assert any("norms.1" in name or name.endswith("conv1.bias") for name in dense)
    assert not any("heads.0" in name for name in dense)
    steps = len(watch.rates) // 5
    assert watch.rates == pytest.approx([0.01] * steps + [0.001] * 2 * steps + [0.01] * steps + [0.001] * steps)
    assert watch.states == ([False] + [True] * (3 * steps - 1)) + ([False] + [True] * (2 * steps - 1))


def test_the_recovery_trains_what_is_stored():
    strategy, _ = trained(method="delta-svd", tasks=2, epochs=5, lr=0.01, recovery=0.4)
    at_the_cut, _ = trained(method="delta-svd", tasks=2, epochs=3, lr=0.01, recovery=0.0)
    stored = [s.method.stored for s in (strategy, at_the_cut)]
    assert not torch.equal(*(s.kernel("conv2", 1) for s in stored))
    few, _ = trained(method="delta-svd", tasks=1, epochs=2)
    assert few.method.diagnostics()["remarks"] == ["too few epochs a task for any to train after the cut"]
    assert strategy.method.diagnostics()["remarks"] == []


def test_training_that_is_stopped_early_is_cut_all_the_same():
    class Stop(SupervisedPlugin):
        def after_training_epoch(self, strategy, **kwargs):
            if strategy.clock.train_exp_epochs == 0:
                strategy.stop_training()

    strategy, _ = trained(Stop(), method="delta-svd", tasks=2, epochs=5, recovery=0.4)
    assert strategy.method.stored.ranks[1] != [DENSE] * 3
    assert torch.equal(logits(strategy.model, 1), logits(served(strategy), 1))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e6])
@pytest.mark.parametrize("where", ["kernel", "head", "bias"])
def test_a_number_that_cannot_be_stored_is_refused(number, where):
    network = nn.Sequential(nn.Conv2d(2, 3, 1))
    head, stored = nn.Linear(3, 2), Stored.of_network(network, 6)
    conv = network[0]

    def add():
        stored.add(-1, [DENSE], {"0": {"D": conv.weight.detach().flatten(1)}}, [conv.bias], head)

    add()  # control
    with torch.no_grad():
        {"head": head.weight, "kernel": conv.weight, "bias": conv.bias}[where].view(-1)[0] = number
    with pytest.raises(UserError, match="not finite or above 65504"):
        add()
    assert len(stored.parents) == 1
    with pytest.raises(UserError, match="not finite or above 65504"):
        delta_svd.to_bytes(torch.tensor([1e6]), exact=False)
    assert len(delta_svd.to_bytes(torch.tensor([6e4]), exact=False)) == 2  # control
