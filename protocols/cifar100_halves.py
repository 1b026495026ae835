"""cifar100-halves: learn one half of CIFAR-100, fine-tune on the other, without pretrained weights from elsewhere."""

from dataclasses import replace

from benchsuite.protocol import Protocol, Recipe, Task, register

from .split_cifar100 import MEAN, STD

# The second setting of arXiv 2411.06346: pretraining on one non-iid half, fine-tuning on the other. The values are those of its
# first setting (batch size, learning rate, weight decay, 50 epochs, normalisation fixed after pretraining), with a step schedule
# in place of a cosine. Its halves share classes unevenly, these share none. It uses the full ResNet-18, this protocol the reduced
# one of continual learning. So its figures are not comparable with ours.
PAPER = Recipe(
    backbone="resnet18",
    batchnorm="frozen_after_first",
    epochs=50,
    milestones=(30, 45),
    lr=0.05,
    batch_size=128,
    optimizer="sgd",
    weight_decay=1e-4,
)

register(
    Protocol(
        name="cifar100-halves",
        summary="2 tasks x 50 classes of 32x32 colour images: pretrain on one half, fine-tune on the other; for training memory",
        needs="CIFAR-100 (161 MB; `benchsuite data get cifar100-halves`)",
        tasks=tuple(
            Task(name=name, dataset="cifar100", classes=tuple(classes), mean=MEAN, std=STD)
            for name, classes in (("0-49", range(50)), ("50-99", range(50, 100)))
        ),
        image=(3, 32, 32),
        crop_padding=4,
        flip=True,
        tiers={
            "paper": PAPER,
            "lite": replace(PAPER, init="he", epochs=3, milestones=(2,)),
            "smoke": replace(PAPER, init="he", epochs=1, milestones=(), train_per_class=2, test_per_class=2),
        },
    )
)
