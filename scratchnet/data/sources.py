"""Where each data set comes from: one table of folders, files, SHA-256 sums and mirrors."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from scratchnet.data import cifar
from scratchnet.data.dataset import Split
from scratchnet.data.idx import read_idx_set


@dataclass(frozen=True)
class Remote:
    """A file to download. It is not needed where all files in `unpacked` are present."""

    name: str
    sha256: str
    unpacked: tuple[str, ...]

    def is_in(self, folder: Path) -> bool:
        return (folder / self.name).is_file() or all(
            (folder / name).is_file() for name in self.unpacked
        )


@dataclass(frozen=True)
class Source:
    """A data set that others publish.

    folder   its sub-folder of the data root
    mirrors  base addresses, tried in order; a file's address is mirror + name
    read     reads (train, test) from the folder
    """

    title: str
    folder: str
    files: tuple[Remote, ...]
    mirrors: tuple[str, ...]
    classes: tuple[str, ...]
    read: Callable[[Path], tuple[Split, Split]]


def _idx_files(sums: str) -> tuple[Remote, ...]:
    """The gzipped IDX files of a set, each of which may also lie there unpacked."""
    pairs = (line.split() for line in sums.strip().splitlines())
    return tuple(Remote(name, sha256, (name.removesuffix(".gz"),)) for sha256, name in pairs)


# As sha256sum prints them, and in the form it checks.
MNIST_SUMS = """
440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609  train-images-idx3-ubyte.gz
3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c  train-labels-idx1-ubyte.gz
8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6  t10k-images-idx3-ubyte.gz
f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6  t10k-labels-idx1-ubyte.gz
"""
FASHION_MNIST_SUMS = """
3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84  train-images-idx3-ubyte.gz
a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845  train-labels-idx1-ubyte.gz
346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073  t10k-images-idx3-ubyte.gz
67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5  t10k-labels-idx1-ubyte.gz
"""

SOURCES = {
    "mnist": Source(
        title="MNIST",
        folder="mnist",
        files=_idx_files(MNIST_SUMS),
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        classes=tuple("0123456789"),
        read=partial(read_idx_set, train=60_000, test=10_000),
    ),
    "fashion-mnist": Source(
        title="Fashion-MNIST",
        folder="fashion-mnist",
        files=_idx_files(FASHION_MNIST_SUMS),
        mirrors=(
            "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ),
        classes=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        read=partial(read_idx_set, train=60_000, test=10_000),
    ),
    "cifar10": Source(
        title="CIFAR-10",
        folder="cifar-10-batches-bin",
        files=(
            Remote(
                cifar.ARCHIVE,
                "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
                cifar.TRAIN_FILES + cifar.TEST_FILES,
            ),
        ),
        mirrors=("https://www.cs.toronto.edu/~kriz/",),
        classes=tuple("airplane automobile bird cat deer dog frog horse ship truck".split()),
        read=cifar.read_cifar10,
    ),
}
