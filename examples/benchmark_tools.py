"""What the benchmarks share: the networks, their training steps, and how they are timed."""

import os

THREADS = os.environ.setdefault("NUMBA_NUM_THREADS", "2")
for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"):
    os.environ.setdefault(variable, THREADS)  # read when NumPy and the peers are imported

import importlib  # noqa: E402
import platform  # noqa: E402
from collections.abc import Callable  # noqa: E402
from functools import partial  # noqa: E402
from importlib.metadata import packages_distributions, version  # noqa: E402
from importlib.util import find_spec  # noqa: E402

import numpy as np  # noqa: E402

import scratchnet as sn  # noqa: E402
from scratchnet.machine import cpu_name  # noqa: E402
from scratchnet.models import INPUT_SHAPES, OPERATORS, report_network  # noqa: E402

BATCHES = {"mnist": 128, "fashion-mnist": 128, "cifar10": 256}
NETWORKS = [f"{dataset}/{operator}" for dataset in BATCHES for operator in OPERATORS]
OURS = "scratchnet"

Step = Callable[[], object]


def training_step(model: sn.Sequential, x: np.ndarray, labels: np.ndarray) -> Step:
    """A function that takes one training step: forward, backward, Adam."""
    loss = sn.SoftmaxCrossEntropy().to(model.backend)
    optimizer = sn.Adam(model.parameters(), 1e-3)

    def step() -> float:
        value = loss.forward(model.forward(x, training=True), labels)
        model.backward(loss.backward(), need_dx=False)
        optimizer.step()
        return value

    return step


def frameworks(with_peers: bool) -> dict[str, Callable[..., Step]]:
    """What makes a training step of a network, for each framework that is here."""
    found: dict[str, Callable[..., Step]] = {OURS: training_step}
    if with_peers and find_spec("torch"):
        found["PyTorch"] = partial(peer_step, "peers_pytorch")
        found["PyTorch channels_last"] = partial(peer_step, "peers_pytorch", channels_last=True)
    if with_peers and find_spec("keras") and find_spec("tensorflow"):
        found["Keras"] = partial(peer_step, "peers_keras")
    return found


def peer_step(module: str, *network_and_batch: object, **settings: bool) -> Step:
    """Imports the framework only now, so that a process holds no more of them than it runs."""
    return importlib.import_module(module).training_step(*network_and_batch, **settings)


def network_and_batch(
    network: str, batch: int | None = None
) -> tuple[sn.Sequential, np.ndarray, np.ndarray]:
    """A network of the report, and random images (N, H, W, C) in [0, 1) with labels."""
    dataset, operator = network.split("/")
    rng = np.random.default_rng(0)
    N = batch or BATCHES[dataset]
    x = rng.random((N, *INPUT_SHAPES[dataset]), np.float32)
    return report_network(dataset, operator, rng=rng), x, rng.integers(10, size=N)


def print_row(cells: list[str]) -> None:
    first, *others = cells
    print(first.ljust(27) + "".join(cell.rjust(max(14, len(cell) + 2)) for cell in others))


def machine() -> dict:
    """What the figures were measured on."""
    packages = ("numpy", "numba", "torch", "keras", "tensorflow")
    distributions = packages_distributions()
    versions = {"scratchnet": sn.__version__} | {
        # TensorFlow comes from distributions of several names.
        name: version(distributions[name][0])
        for name in packages
        if name in distributions
    }
    return {"cpu": cpu_name(), "cores": os.cpu_count(), "threads": int(THREADS)} | {
        "python": platform.python_version(),
        **versions,
    }
