"""How fast each layer of a training step is, against what it must compute and move.

    bytes floor        what a layer must read and write, at the speed of a copy
    operations floor   its multiply-adds, at the speed of a large matrix product

The larger of the two is the floor. Layers whose arrays stay in a cache can pass below the first,
those that save multiplications (Winograd) below the second.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numba import njit, prange

from scratchnet.backends import get_backend
from scratchnet.layers import Conv2D, Flatten, Involution2D, Layer, Sequential
from scratchnet.layers.fused import FusedConv2D
from scratchnet.losses import SoftmaxCrossEntropy
from scratchnet.optim import Optimizer


def measure(
    calls: Mapping[str, Callable[[], object]], blocks: int, seconds: float
) -> dict[str, list[float]]:
    """Seconds a call, one number a block, for each function; they take turns, block by block."""
    counts = {}
    for name, call in calls.items():
        call()
        call()
        counts[name] = max(1, round(seconds / timed(call, 1)))
    results: dict[str, list[float]] = {name: [] for name in calls}
    for block in range(blocks):
        for name in list(calls)[:: 1 if block % 2 else -1]:
            calls[name]()  # brings its data back into the cache
            results[name].append(timed(calls[name], counts[name]))
    return results


def timed(call: Callable[[], object], count: int) -> float:
    """Seconds a call, over so many of them."""
    began = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - began) / count


@dataclass(frozen=True)
class Limits:
    """What this processor can do at most.

    bandwidth   bytes a second, read and written, of a copy far larger than any cache
    rate        multiply-adds a second of a float32 matrix product of side 2048
    """

    bandwidth: float
    rate: float

    def __str__(self) -> str:
        return (
            f"copy {self.bandwidth / 1e9:.1f} GB/s (read and written), "
            f"product {2 * self.rate / 1e9:.0f} GFLOP/s"
        )


def measured_limits(backend: str = "cpu", blocks: int = 9) -> Limits:
    """Both limits, with all threads or of the GPU, by medians of so many blocks.

    A processor's product is NumPy's, which is its library's; a GPU's is ours.
    """
    source = np.ones(64 * 2**20, np.float32)
    a, b = np.ones((2, 2048, 2048), np.float32)
    if backend == "cuda":
        ops, synchronize = get_backend("cuda"), _synchronizer("cuda")
        source, a, b = map(ops.to_device, (source, a, b))
        moved = 3 * source.nbytes
        calls = {
            "copy": lambda: (ops.add_forward(source, source), synchronize()),
            "product": lambda: (ops.dense_forward(a, b, None), synchronize()),
        }
    else:
        target = np.zeros_like(source)
        moved = 2 * source.nbytes
        calls = {"copy": lambda: _copy(target, source), "product": lambda: a @ b}
    seconds = measure(calls, blocks, 0.1)
    return Limits(
        moved / statistics.median(seconds["copy"]),
        2048**3 / statistics.median(seconds["product"]),
    )


@njit(parallel=True)
def _copy(target, source):
    for block in prange(64):
        size = source.size // 64
        target[block * size : (block + 1) * size] = source[block * size : (block + 1) * size]


def profile(
    network: Sequential,
    optimizer: Optimizer,
    x: np.ndarray,
    labels: np.ndarray,
    limits: Limits,
    seconds: float = 2.0,
) -> dict:
    """Time, rates and floors of each step of the network, as they follow one another in training.

    x, labels   a batch (N, H, W, C) and its labels (N,)
    returns     ms of a training step, and a list of layers: name, operator, and for forward and
                backward what `rates` gives
    """
    ops = get_backend(network.backend)
    loss = SoftmaxCrossEntropy().to(network.backend)
    x, labels = ops.to_device(x), ops.to_device(labels)
    names = [*map(step_name, network.steps), "loss", "optimizer"]
    ways = [[[] for _ in names], [[] for _ in names]]
    began = time.perf_counter()
    while len(ways[0][0]) < 10 or time.perf_counter() - began < seconds:
        arrays = _one_step(network, loss, optimizer, x, labels, *ways)
    # Medians over single steps, the first of which compile and fill the memory pool.
    forward, backward = ([statistics.median(times[3:]) for times in way] for way in ways)
    total = sum(forward) + sum(backward)
    layers = []
    for i, name in enumerate(names):
        layer = {"layer": name, "share": (forward[i] + backward[i]) / total}
        step = network.steps[i] if i < len(network.steps) else None
        costs = step_costs(step, *arrays[i]) if step else [(0, 0), (0, 0)]
        layer["operator"] = _operator(step) if step else name
        for way, time_, cost in zip(
            ("forward", "backward"), (forward[i], backward[i]), costs, strict=True
        ):
            layer[way] = rates(time_, *cost, limits)
        layers.append(layer)
    return {"batch": len(x), "ms": 1e3 * total, "layers": layers}


def _one_step(network, loss, optimizer, x, labels, forward, backward) -> list[tuple]:
    """A training step, each part timed into the lists; returns (x, y, dx) of each layer."""
    synchronize = _synchronizer(network.backend)

    def clocked(times: list[float], call: Callable):
        began = time.perf_counter()
        result = call()
        synchronize()
        times.append(time.perf_counter() - began)
        return result

    arrays = []
    for i, step in enumerate(network.steps):
        y = clocked(forward[i], lambda step=step, x=x: step.forward(x, training=True))
        arrays.append((x, y))
        x = y
    clocked(forward[-2], lambda: loss.forward(x, labels))
    dy = clocked(backward[-2], loss.backward)
    for i, step in reversed(list(enumerate(network.steps))):
        dy = clocked(backward[i], lambda step=step, dy=dy, i=i: step.backward(dy, i > 0))
        arrays[i] += (dy,)
    forward[-1].append(0.0)
    clocked(backward[-1], optimizer.step)
    return arrays


def _synchronizer(backend: str) -> Callable[[], None]:
    """What waits until the backend has done all it was told."""
    if backend != "cuda":
        return lambda: None
    from scratchnet.backends.cuda.arrays import synchronize  # only where CUDA can be imported

    return synchronize


def step_name(step: Layer) -> str:
    """A fused step is named by the layers it stands for."""
    if isinstance(step, FusedConv2D):
        pool = f" {step.pool!r}" if step.pool else ""
        return f"{step.conv!r} ReLU(){pool}"
    return repr(step).replace("kernel_size=", "")


def _operator(step: Layer) -> str:
    kind = type(step.conv if isinstance(step, FusedConv2D) else step)
    return {Conv2D: "convolution", Involution2D: "involution"}.get(kind, kind.__name__)


def step_costs(step: Layer, x, y, dx) -> list[tuple[int, int]]:
    """(bytes, multiply-adds) that forward and backward cannot do without.

    Backward reads what forward remembered. Its multiply-adds are those of two products, for the
    gradients of the weights and of the input; the first layer of a network does without the second.
    """
    if isinstance(step, Flatten):
        return [(0, 0), (0, 0)]  # which only gives the array another shape
    layer = step.conv if isinstance(step, FusedConv2D) else step
    weights = sum(p.value.nbytes for p in layer.parameters() if p.trainable)
    remembered = [a for a in vars(step).values() if hasattr(a, "nbytes")]
    kept = sum(a.nbytes for a in remembered)
    taps = sum(a.nbytes for a in remembered if a.dtype == np.uint8)  # written beside y by a pool
    forward = len(x) * layer.flops(x.shape[1:])
    backward = 2 * forward
    if dx is None:
        backward -= len(x) * _input_gradient_flops(layer, x.shape[1:])
    dx_bytes = 0 if dx is None else dx.nbytes
    return [
        (x.nbytes + y.nbytes + taps + weights, forward),
        (y.nbytes + kept + dx_bytes + 2 * weights, backward),
    ]


def _input_gradient_flops(layer: Layer, shape: tuple[int, ...]) -> int:
    """Multiply-adds that only the input's gradient needs: of an involution, all but `span`'s."""
    if not isinstance(layer, Involution2D):
        return layer.flops(shape)
    Ho, Wo, _ = layer.output_shape(shape)
    return layer.flops(shape) - layer.span.flops((Ho, Wo, layer.span.in_channels))


def rates(seconds: float, bytes_: int, multiply_adds: int, limits: Limits) -> dict:
    """Milliseconds, counts, GFLOP/s, GB/s, the floor in ms, and how many times that it took."""
    floor = max(bytes_ / limits.bandwidth, multiply_adds / limits.rate)
    return {
        "ms": 1e3 * seconds,
        "bytes": bytes_,
        "multiply_adds": multiply_adds,
        "gflops": 2 * multiply_adds / seconds / 1e9 if seconds else None,
        "gbytes": bytes_ / seconds / 1e9 if seconds else None,
        "floor_ms": 1e3 * floor,
        "to_floor": seconds / floor if floor else None,
    }
