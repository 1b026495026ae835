"""split-cifar100: CIFAR-100 in 20 tasks of 5 classes, as in CACL (arXiv 2009.01956, official code)."""

from dataclasses import replace

from benchsuite.protocol import Protocol, Published, Recipe, register, split

MEAN, STD = (0.507, 0.487, 0.441), (0.267, 0.256, 0.276)
PAPER = Recipe(backbone="cacl", epochs=200, milestones=(120, 180), lr=1e-3, batch_size=64, dropout=0.15)

# From the comparison in ACL, which has another protocol: classes permuted by the seed, SGD with early stopping, no augmentation,
# networks like AlexNet.
ACL_PROTOCOL = "Miao et al. (ICLR 2022), Table 1, reprinting ACL's figures; ACL's protocol, not this recipe"

register(
    Protocol(
        name="split-cifar100",
        summary="20 tasks x 5 classes of 32x32 colour images, classes in label order, tasks shuffled by the seed",
        needs="CIFAR-100 (161 MB; `benchsuite data get split-cifar100`)",
        # The class groups are fixed, contiguous in the order of the fine labels; only the order of the tasks is random.
        tasks=split("cifar100", tasks=20, mean=MEAN, std=STD),
        image=(3, 32, 32),
        crop_padding=4,
        flip=True,
        tiers={
            "paper": PAPER,
            "lite": replace(PAPER, width=0.5, init="he", epochs=10, milestones=(6, 9)),
            "smoke": replace(PAPER, init="he", epochs=1, milestones=(), tasks=3, train_per_class=16, test_per_class=8),
        },
        published=(
            Published(
                method="CACL",
                ours="cacl",
                accuracy=86.58,
                bwt=None,  # isolated by construction; the official code computes none
                megabytes=8.53,
                source="official code (github pavanteja295/CACL), README, released model, lambda_s = 0.1, one seed",
            ),
            Published(method="HAT", ours="hat", comparable=False, accuracy=76.96, bwt=0.01, source=ACL_PROTOCOL),
            Published(method="A-GEM", ours="agem", comparable=False, accuracy=54.38, bwt=-21.99, source=ACL_PROTOCOL),
            Published(method="ER-RES", ours="er", comparable=False, accuracy=66.78, bwt=-15.01, source=ACL_PROTOCOL),
            Published(method="ACL", comparable=False, accuracy=78.08, bwt=0.0, source=ACL_PROTOCOL),
        ),
    )
)
