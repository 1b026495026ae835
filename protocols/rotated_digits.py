"""rotated-digits: the default protocol, all ten digits in five orientations from few images; needs no download.

The same digits are learnt as they are, turned by 90, 180 and 270 degrees, and transposed, as in the rotated-MNIST benchmarks of
the field. All operations are exact. With 40 images a class the tasks are hard enough to tell methods apart: sharing features
helps, and forgetting shows.
"""

from typing import get_args

from benchsuite.protocol import Orientation, Protocol, Recipe, Task, register

from .split_digits import MEAN, STD

FULL = Recipe(
    backbone="digits",
    init="he",
    epochs=8,
    milestones=(5, 7),
    lr=1e-3,
    batch_size=40,
    dropout=0.15,
    train_per_class=40,
)

register(
    Protocol(
        name="rotated-digits",
        summary="5 tasks x 10 classes of 8x8 handwritten digits: upright, turned three ways, transposed; the embedded default",
        needs="nothing: the images come with scikit-learn",
        tasks=tuple(
            Task(name=way, dataset="digits", classes=tuple(range(10)), mean=MEAN, std=STD, orientation=way)
            for way in get_args(Orientation)
        ),
        image=(1, 8, 8),
        tiers={
            "paper": FULL,
            "lite": Recipe(**{**vars(FULL), "epochs": 2, "milestones": ()}),
            "smoke": Recipe(**{**vars(FULL), "epochs": 1, "milestones": (), "train_per_class": 8, "test_per_class": 8}),
        },
    )
)
