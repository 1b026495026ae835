"""new-protocol: which tasks are learned, from which images, by which recipe.

As it stands, this file is a protocol that runs, on the digits that come with scikit-learn:
    benchsuite check ./new_protocol.py                  whether it is sound, in less than a minute
    benchsuite leaderboard --protocol ./new_protocol.py --tier smoke --method finetune --method ewc
"""

from benchsuite.protocol import Protocol, Recipe, register, split

# Your own photos: a folder beside this file, with one folder for each class. Without a folder of test images a fifth of each
# class, always the same, is for testing. Other readers are Npz, Parquet and Torchvision.
#
# from benchsuite.data import DataSet, ImageFolder, declare
# PHOTOS = declare(DataSet(name="photos", classes=10, folder="photos", reader=ImageFolder(size=32)))
#
# Then write split(PHOTOS, tasks=5) below, image=(3, 32, 32), and backbone="cacl" or "resnet18".

FULL = Recipe(
    backbone="digits",  # "cacl" and "resnet18" are for colour images of 32x32 and more
    init="he",
    epochs=20,
    milestones=(12, 18),  # the learning rate is divided by ten at the start of these epochs
    lr=1e-3,
    batch_size=16,
)

register(
    Protocol(
        name="new-protocol",
        summary="5 tasks x 2 classes of handwritten digits",  # for `benchsuite list`
        # Tasks of equally many classes, in the order of the labels; the seed of a run shuffles the tasks. Others are written out,
        # as Task(name="even", dataset="digits", classes=(0, 2, 4, 6, 8)). Pixels are normalised by the mean and standard
        # deviation of the training images, unless mean=... and std=... say otherwise.
        tasks=split("digits", tasks=5),
        image=(1, 8, 8),  # channels, height, width of the network's input
        crop_padding=0,  # training augmentation: a random crop after so many pixels of padding,
        flip=False,  # and a horizontal flip of every second image
        tiers={
            "paper": FULL,  # the full recipe: the default tier
            "smoke": Recipe(backbone="digits", init="he", epochs=1, batch_size=16, train_per_class=48),  # seconds
        },
    )
)
