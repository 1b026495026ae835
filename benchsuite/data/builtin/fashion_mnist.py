"""FashionMNIST: 28x28 grey images of ten kinds of clothes (Xiao, Rasul and Vollgraf, 2017)."""

from functools import partial

from ..declared import DataSet, Official, declare
from ..fetch import Remote
from .mnist import idx_files

MIRROR = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
MD5 = {  # as torchvision has them
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}

declare(
    DataSet(
        name="fashion_mnist",
        classes=10,
        reader=partial(idx_files, folders=("FashionMNIST", "fashion_mnist", "fashion-mnist")),
        layouts="FashionMNIST/raw/*-ubyte[.gz], FashionMNIST/*-ubyte[.gz]",
        fetch=(tuple(Remote((MIRROR + file,), f"FashionMNIST/raw/{file}", md5) for file, md5 in MD5.items()),),
        official=Official(
            train=60_000,
            test=10_000,
            balanced=True,
            digest="e82adc0c97c6273e3db09f058ebe2cde03fe9e1df16f9d9054d558032e2a0f39",
        ),
    )
)
