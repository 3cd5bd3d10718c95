"""Where each data set comes from: one table of folders, files, SHA-256 sums and mirrors.

The sums of the gzipped files are checked where they are downloaded; those of what is in MNIST's and
Fashion-MNIST's, which do not depend on how a file was packed, wherever it is read.
"""

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


def _by_name(sums: str) -> dict[str, str]:
    """Name to SHA-256, from lines as sha256sum prints them."""
    return {name: sha256 for sha256, name in map(str.split, sums.strip().splitlines())}


def _idx_files(sums: dict[str, str]) -> tuple[Remote, ...]:
    """The gzipped IDX files of a set, each of which may also lie there unpacked."""
    return tuple(
        Remote(name, sha256, (name.removesuffix(".gz"),))
        for name, sha256 in sums.items()
        if name.endswith(".gz")
    )


# As sha256sum prints them, and in the form it checks.
MNIST_SUMS = _by_name("""
440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609  train-images-idx3-ubyte.gz
3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c  train-labels-idx1-ubyte.gz
8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6  t10k-images-idx3-ubyte.gz
f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6  t10k-labels-idx1-ubyte.gz
ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db  train-images-idx3-ubyte
65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5  train-labels-idx1-ubyte
0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7  t10k-images-idx3-ubyte
ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2  t10k-labels-idx1-ubyte
""")
FASHION_MNIST_SUMS = _by_name("""
3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84  train-images-idx3-ubyte.gz
a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845  train-labels-idx1-ubyte.gz
346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073  t10k-images-idx3-ubyte.gz
67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5  t10k-labels-idx1-ubyte.gz
c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888  train-images-idx3-ubyte
bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9  train-labels-idx1-ubyte
5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b  t10k-images-idx3-ubyte
0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34  t10k-labels-idx1-ubyte
""")

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
        read=partial(read_idx_set, train=60_000, test=10_000, sums=MNIST_SUMS),
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
        read=partial(read_idx_set, train=60_000, test=10_000, sums=FASHION_MNIST_SUMS),
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
