"""CIFAR-100: 32x32 colour images of a hundred kinds of things, with the fine labels (Krizhevsky, 2009)."""

from functools import partial

from ..declared import DataSet, Official, declare
from ..fetch import Remote
from ..readers import AnyOf, Parquet
from .cifar10 import batches

ARCHIVE, INNER = "cifar-100-python.tar.gz", "cifar-100-python"
TABLES = ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet")
HUB = "https://huggingface.co/datasets/uoft-cs/cifar100/resolve/main/cifar100/"

declare(
    DataSet(
        name="cifar100",
        classes=100,
        reader=AnyOf(
            (
                partial(batches, inner=INNER, archive=ARCHIVE, key="fine_labels", classes=100, train=["train"], test="test"),
                Parquet(image="img", label="fine_label", within=("cifar100", "cifar100/cifar100")),
            )
        ),
        layouts=f"{ARCHIVE}, {INNER}/, cifar100/{{train,test}}-*.parquet",
        fetch=(
            (Remote((f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}",), ARCHIVE, "eb9058c3a382ffc7106e4002c42a8d85"),),
            tuple(Remote((HUB + table,), f"cifar100/{table}") for table in TABLES),  # proved by the digest of the pixels
        ),
        official=Official(
            train=50_000,
            test=10_000,
            balanced=True,
            digest="bf7e3bf0060884123ceb697998cf8e8f294bc2de18405d8d23dcbfe02a0d9322",
        ),
    )
)
