"""How many kernels a training step of each of the report's networks starts on a GPU.

    python examples/gpu_launches.py                             with a GPU
    NUMBA_ENABLE_CUDASIM=1 python examples/gpu_launches.py      without

A launch from Python costs tens of microseconds, which for these networks is most of a step. Nothing
is computed here: launches are counted, not made. The simulator's tiles and GPU are tiny, so it cuts
some products otherwise, and comes to a few launches more or fewer.
"""

import sys
from collections import Counter

import numpy as np

from scratchnet import Adam, SoftmaxCrossEntropy, models
from scratchnet.backends import BackendError, get_backend
from scratchnet.models.report import INPUT_SHAPES

BATCH = 32


def count(dataset: str, operator: str) -> Counter:
    """Kernels by name that one step starts."""
    network = models.report_network(dataset, operator).to("cuda")
    loss, optimizer = SoftmaxCrossEntropy().to("cuda"), Adam(network.parameters())
    started = Counter()
    device = get_backend("cuda").device
    device._start = lambda kernel, *_: started.update([kernel.py_func.__name__])
    x = np.zeros((BATCH, *INPUT_SHAPES[dataset]), np.float32)
    loss.forward(network.forward(x, training=True), np.zeros(BATCH, np.int64))
    network.backward(loss.backward(), need_dx=False)
    optimizer.step()
    return started


def main() -> None:
    try:
        get_backend("cuda")
    except BackendError as error:
        sys.exit(f"{error}; or set NUMBA_ENABLE_CUDASIM=1")
    for dataset in ("mnist", "fashion-mnist", "cifar10"):
        for operator in models.OPERATORS:
            started = count(dataset, operator)
            kernels = ", ".join(f"{n} {name}" for name, n in started.most_common())
            print(f"{dataset:14} {operator:12} {started.total():3} launches: {kernels}")


if __name__ == "__main__":
    main()
