"""five-datasets: CIFAR-10, notMNIST, MNIST, SVHN and FashionMNIST as five tasks, as in CACL (arXiv 2009.01956)."""

from dataclasses import replace

from benchsuite.protocol import Protocol, Published, Recipe, Task, register

TEN = tuple(range(10))
PAPER = Recipe(backbone="cacl", epochs=200, milestones=(120, 180), lr=1e-3, batch_size=64, dropout=0.15)


def grey(name: str, dataset: str, mean: float, std: float) -> Task:
    """28x28 grey images, zero-padded by 2 before normalisation, with three equal channels. Statistics are of padded images."""
    return Task(name=name, dataset=dataset, classes=TEN, mean=(mean,) * 3, std=(std,) * 3, pad=2)


def rgb255(*values: float) -> tuple[float, ...]:
    return tuple(v / 255 for v in values)


register(
    Protocol(
        name="five-datasets",
        summary="5 tasks x 10 classes: CIFAR-10, notMNIST, MNIST, SVHN, FashionMNIST at 32x32, shuffled by the seed",
        needs="CIFAR-10, notMNIST, MNIST, SVHN, FashionMNIST (about 450 MB; `benchsuite data get five-datasets`)",
        tasks=(
            Task(
                name="CIFAR-10",
                dataset="cifar10",
                classes=TEN,
                mean=rgb255(125.3, 123.0, 113.9),
                std=rgb255(63.0, 62.1, 66.7),
            ),
            grey("notMNIST", "notmnist", 0.4254, 0.4501),
            grey("MNIST", "mnist", 0.1, 0.2752),
            Task(name="SVHN", dataset="svhn", classes=TEN, mean=(0.4377, 0.4438, 0.4728), std=(0.198, 0.201, 0.197)),
            grey("FashionMNIST", "fashion_mnist", 0.2190, 0.3318),
        ),
        image=(3, 32, 32),
        tiers={
            "paper": PAPER,
            # Without the cap MNIST and FashionMNIST would take 86 % of the time.
            "lite": replace(PAPER, width=0.5, init="he", epochs=10, milestones=(6, 9), train_per_class=1000),
            "smoke": replace(PAPER, init="he", epochs=1, milestones=(), train_per_class=8, test_per_class=4),
        },
        published=(
            Published(
                method="CACL",
                ours="cacl",
                accuracy=91.56,
                megabytes=1.49,
                source="official code (github pavanteja295/CACL), results/SVDNet_Test_sparse_wt0.1, lambda_s = 0.1, one seed; "
                "1.489104 MB there, printed as 1.48",
            ),
        ),
    )
)
