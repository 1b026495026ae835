"""Batch normalisation under each policy."""

import pytest
import torch
from avalanche.core import SupervisedPlugin
from short_runs import TINY, trained
from torch import nn

from benchsuite.errors import UserError
from benchsuite.nn.backbones import build_backbone
from benchsuite.nn.multihead import MultiHead
from benchsuite.training.runner import run
from benchsuite.training.settings import resolve

RESNET = {"backbone": "resnet18", "width": 0.25, "epochs": 1}


def drift_of_statistics(policy):
    """Logits of the first task while the second is learnt with every parameter of the backbone held still."""
    strategy, stream = trained(tasks=1, batchnorm=policy, **RESNET)
    x = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    logits = strategy.model.eval()(x, 0).detach()
    strategy.model.train()
    for p in strategy.model.backbone.parameters():
        p.requires_grad_(False)
    strategy.train(stream.train[1], eval_streams=[])
    return (strategy.model.eval()(x, 0) - logits).abs().max().item()


@pytest.mark.parametrize("policy", ["per_task", "frozen_after_first", "batch_stats"])
def test_what_later_tasks_do_to_the_statistics_does_not_reach_the_first(policy):
    assert drift_of_statistics(policy) == 0


def test_shared_statistics_drift_even_when_every_parameter_is_frozen():
    assert drift_of_statistics("shared") > 1e-3


def test_scale_and_shift_are_fixed_after_the_first_task():
    strategy, stream = trained(tasks=1, batchnorm="frozen_after_first", optimizer="adamw", weight_decay=0.1, **RESNET)
    before = {name: t.clone() for name, t in strategy.model.state_dict().items() if ".norm." in name}
    strategy.train(stream.train[1], eval_streams=[])
    after = strategy.model.state_dict()
    assert before
    assert all(torch.equal(after[name], t) for name, t in before.items())


def test_a_replayed_image_of_the_first_task_teaches_normalisation_nothing():
    settings = {"method": "er", "batchnorm": "frozen_after_first", "budget": 0.001, **RESNET}
    strategy, stream = trained(tasks=1, **settings)
    before = {name: t.clone() for name, t in strategy.model.state_dict().items() if ".norm." in name}
    heads = strategy.model.heads["0"].weight.detach().clone()
    strategy.train(stream.train[1], eval_streams=[])
    after = strategy.model.state_dict()
    assert all(torch.equal(after[name], t) for name, t in before.items())
    assert not torch.equal(strategy.model.heads["0"].weight, heads)  # control: images of the first task were there


def test_what_the_first_task_fixed_stays_fixed_in_a_run_that_is_resumed(tmp_path):
    job = resolve(
        "split-digits", "smoke", "finetune", 1, overrides={**TINY, "tasks": 3, "batchnorm": "frozen_after_first", **RESNET}
    )
    whole = run(job, results=tmp_path / "whole")

    class Stop(SupervisedPlugin):
        def before_training_exp(self, strategy, **kwargs):
            if strategy.experience.current_experience == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(job, results=tmp_path / "parts", plugins=[Stop()])
    assert run(job, results=tmp_path / "parts").artifact_sha256 == whole.artifact_sha256


def test_each_task_has_four_numbers_a_channel_of_its_own():
    strategy, _ = trained(tasks=2, **RESNET)
    artifact = strategy.method.artifact()
    dense = MultiHead.build("resnet18", image=(1, 8, 8), classes=[2], batchnorm="shared", width=0.25)
    channels = sum(m.num_features for m in dense.modules() if isinstance(m, nn.BatchNorm2d))
    stored = sum(t.numel() for name, t in artifact.tensors.items() if ".norms." in name)
    assert stored == 2 * 4 * channels


def test_an_individual_network_starts_with_fresh_normalisation():
    class Start(SupervisedPlugin):
        def __init__(self):
            super().__init__()
            self.fresh = []

        def before_training_exp(self, strategy, **kwargs):
            self.fresh.append([identity(network) for network in strategy.model.backbone.models.values()])

    def identity(network):
        norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
        assert norms
        zero = [t for m in norms for t in (m.running_mean, m.bias, m.num_batches_tracked)]
        one = [t for m in norms for t in (m.running_var, m.weight)]
        return not any(t.any() for t in zero) and all((t == 1).all() for t in one)

    start = Start()
    trained(start, method="individual", tasks=3, train_per_class=8, **RESNET)
    assert start.fresh == [[True], [False, True], [False, False, True]]  # those of earlier tasks have learnt


def test_the_policy_is_part_of_a_run_only_where_there_is_something_to_normalise():
    plain = resolve("split-digits", "smoke", "finetune", 1)
    assert "batchnorm" not in plain.settings
    job = resolve("split-digits", "smoke", "finetune", 1, overrides={"backbone": "resnet18"})
    assert job.settings["batchnorm"] == "per_task"
    with pytest.raises(UserError, match="has no batch normalisation"):
        resolve("split-digits", "smoke", "finetune", 1, overrides={"batchnorm": "shared"})


@pytest.mark.parametrize("method", ["cacl", "delta-svd", "hat", "packnet"])
def test_methods_that_forget_nothing_refuse_shared_statistics(method):
    with pytest.raises(UserError, match="batchnorm=per_task"):
        resolve("split-digits", "smoke", method, 1, overrides={"backbone": "resnet18", "batchnorm": "shared"})
    assert resolve("split-digits", "smoke", "individual", 1, overrides={"backbone": "resnet18", "batchnorm": "shared"})


@pytest.mark.parametrize("image", [(3, 32, 32), (3, 84, 84), (1, 8, 8)])
def test_resnet18_has_the_shape_it_says(image):
    model = MultiHead.build("resnet18", image=image, classes=[5], batchnorm="shared").eval()
    x = torch.zeros(2, *image)
    assert model.backbone(x).shape == (2, model.features) == (2, 160)
    convolutions = [m for m in model.backbone.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 20  # 17 of 3x3 in the stem and the blocks, 3 of 1x1 in the shortcuts
    named = {name for name, m in model.backbone.named_modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)}
    assert named == set(model.backbone.wiring)


def test_a_narrow_resnet_has_the_gradients_of_double_precision():
    """With fewer than 8 channels before a strided shortcut, some kernels of 1x1 convolutions write past their memory."""
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)

    def gradients(dtype):
        network = build_backbone("resnet18", (3, 32, 32), 0.0, seed=1, width=0.2).to(dtype)
        network(x.to(dtype)).square().sum().backward()
        return {name: p.grad for name, p in network.named_parameters()}

    exact, found = gradients(torch.float64), gradients(torch.float32)
    narrow = [name for name, p in found.items() if "shortcut.0" in name and p.shape[1] < 8]
    assert narrow
    for name, gradient in found.items():
        # a ReLU near 0 may say otherwise in the other precision, which moves a few per cent
        assert (gradient - exact[name]).abs().max() < 0.1 * exact[name].abs().max(), name
