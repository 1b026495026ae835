"""split-miniimagenet: miniImageNet in 20 tasks of 5 classes, as in CACL (arXiv 2009.01956, official code)."""

from dataclasses import replace

from benchsuite.protocol import Protocol, Published, Recipe, register, split

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PAPER = Recipe(backbone="cacl", epochs=200, milestones=(150, 180), lr=1e-3, batch_size=64, dropout=0.15)

# From the comparison in ACL, which has another protocol: classes permuted by the seed, SGD with early stopping, no augmentation,
# networks like AlexNet.
ACL_PROTOCOL = "Miao et al. (ICLR 2022), Table 1, reprinting ACL's figures; ACL's protocol, not this recipe"

register(
    Protocol(
        name="split-miniimagenet",
        summary="20 tasks x 5 classes of 84x84 colour images, classes in WordNet-id order, tasks shuffled by the seed",
        needs="miniImageNet, 600 images for each of 100 classes, which you must bring (`benchsuite data get split-miniimagenet`)",
        # The upstream class numbering is not documented; ours is the order of the WordNet ids.
        tasks=split("miniimagenet", tasks=20, mean=MEAN, std=STD),
        image=(3, 84, 84),
        flip=True,
        tiers={
            "paper": PAPER,
            # About a twentieth of the published image passes: 40 epochs of 100 images a class, so that whoever has a part of
            # the images takes enough steps, too. On a tenth of them (160 steps a task) `individual` learns three tasks to 52 %.
            "lite": replace(PAPER, width=0.5, init="he", epochs=40, milestones=(30, 36), train_per_class=100),
            "smoke": replace(
                PAPER, init="he", epochs=1, milestones=(), tasks=2, train_per_class=8, test_per_class=4, batch_size=16
            ),
        },
        published=(
            Published(
                method="CACL",
                ours="cacl",
                accuracy=70.10,
                megabytes=13.03,
                source="official code (github pavanteja295/CACL), README, released model, lambda_s = 0.1, one seed; it numbers"
                " the classes in an order that is not documented, so that its tasks may group them otherwise",
            ),
            Published(method="HAT", ours="hat", comparable=False, accuracy=59.45, bwt=-0.04, source=ACL_PROTOCOL),
            Published(method="A-GEM", ours="agem", comparable=False, accuracy=52.43, bwt=-15.23, source=ACL_PROTOCOL),
            Published(method="ER-RES", ours="er", comparable=False, accuracy=57.32, bwt=-11.34, source=ACL_PROTOCOL),
            Published(method="ACL", comparable=False, accuracy=62.07, bwt=0.0, source=ACL_PROTOCOL),
        ),
    )
)
