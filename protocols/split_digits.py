"""split-digits: five easy tasks of two handwritten digits each, for quick checks; needs no download."""

from benchsuite.protocol import Protocol, Recipe, register, split

# Images: scikit-learn's copy of the UCI optical digits (1,797 grey 8x8 images, values 0..16 stored as 0..255). The copy has no
# split into training and test images. Ours is fixed: two thirds of each class for training.
MEAN, STD = (0.305,), (0.376,)  # of the training pixels, rounded

FULL = Recipe(backbone="digits", init="he", epochs=20, milestones=(12, 18), lr=1e-3, batch_size=16, dropout=0.15)

register(
    Protocol(
        name="split-digits",
        summary="5 tasks x 2 classes of 8x8 handwritten digits; nearly every method ends at 99 %, so use it for quick checks",
        needs="nothing: the images come with scikit-learn",
        tasks=split("digits", tasks=5, mean=MEAN, std=STD),
        image=(1, 8, 8),
        tiers={
            "paper": FULL,
            "lite": Recipe(**{**vars(FULL), "epochs": 1, "milestones": ()}),
            "smoke": Recipe(**{**vars(FULL), "epochs": 1, "milestones": (), "train_per_class": 48}),
        },
    )
)
