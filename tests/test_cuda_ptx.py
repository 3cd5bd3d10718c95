"""Every kernel compiles for a GPU that is not there: types, which the simulator does not know.

Networks and operators run on arrays without memory, and each launch compiles its kernel to PTX for
compute capability 9.0 instead of starting it. Needs the compiler, not a driver:

    pip install -e '.[dev,gpu]' && pytest tests/test_cuda_ptx.py -s

With -s, registers and spills of each kernel are printed where ptxas is at hand.
"""

import importlib
import os
import re
import shutil
import subprocess
import types

import numba
import numba.cuda
import numpy as np
import pytest
from cases import CASES
from checks import cast, cotangent_like, run_backward, run_forward

from scratchnet import SGD, Adam, SoftmaxCrossEntropy, clip_gradients
from scratchnet.backends import OPERATORS
from scratchnet.layers import BatchNorm, Involution2D, WindowAttention2D
from scratchnet.models import report_network
from scratchnet.models.report import INPUT_SHAPES

if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
    pytest.skip("the simulator compiles nothing", allow_module_level=True)
if numba.cuda.implementation != "NVIDIA":
    pytest.skip(
        "the compiler comes with numba-cuda, which is not installed: pip install -e '.[gpu]'",
        allow_module_level=True,
    )

COMPUTE_CAPABILITY = (9, 0)
WITHOUT_LOCAL_MEMORY = ("matrix_product", "involution")


class Memory:
    """Where device memory would be: a size and a dtype."""

    def __init__(self, size: int, dtype: np.dtype):
        self.size, self.dtype = size, np.dtype(dtype)

    def __getitem__(self, part: slice) -> "Memory":
        return Memory(len(range(*part.indices(self.size))), self.dtype)

    def copy_to_device(self, array: np.ndarray) -> None:
        pass

    def copy_to_host(self) -> np.ndarray:
        return np.zeros(self.size, self.dtype)


class Compiler:
    """Stands in for a GPU: keeps the PTX of each kernel for each signature."""

    def __init__(self) -> None:
        self.compiled: dict[tuple, str] = {}
        self.ptxas = shutil.which("ptxas")

    def start(self, kernel, blocks, threads, arguments) -> None:
        signature = tuple(self.type_of(argument) for argument in arguments)
        if (kernel, signature) in self.compiled:
            return
        ptx, _ = numba.cuda.compile_ptx(kernel.py_func, signature, cc=COMPUTE_CAPABILITY)
        self.compiled[kernel, signature] = ptx
        name = kernel.py_func.__name__
        if name.startswith(WITHOUT_LOCAL_MEMORY):
            assert ".local" not in ptx, f"{name} keeps numbers in local memory"
        if "float64" not in str(signature):
            double = re.search(r"\s(?:add|mul|fma|div)\S*\.f64.*", ptx)
            assert not double, f"{name} computes in float64 what is float32:{double.group()}"
        print(f"{name:28} {str(threads):>14} {self.registers(ptx)}")

    def type_of(self, argument):
        if isinstance(argument, tuple):
            return numba.types.BaseTuple.from_types([self.type_of(part) for part in argument])
        if isinstance(argument, Memory):
            return numba.types.Array(numba.from_dtype(argument.dtype), 1, "C")
        return numba.typeof(argument)

    def registers(self, ptx: str) -> str:
        """What ptxas says of registers and spills; an older one takes PTX of an older version."""
        if self.ptxas is None:
            return ""
        release = subprocess.run([self.ptxas, "--version"], capture_output=True, text=True).stdout
        major, minor = re.search(r"release (\d+)\.(\d+)", release).groups()
        if int(major) == 13:
            ptx = re.sub(r"\.version \d+\.\d+", f".version 9.{minor}", ptx)
        command = [self.ptxas, "-arch=sm_90", "-v", "-o", os.devnull, "/dev/stdin"]
        said = subprocess.run(command, input=ptx, capture_output=True, text=True).stderr
        used = re.search(r"Used (\d+ registers)", said)
        spilled = re.search(r"(\d+) bytes spill stores", said)
        assert used, said
        return f"{used.group(1)}, {spilled.group(1)} bytes spilled"


@pytest.fixture(scope="module")
def compiler():
    """The cuda backend, on a GPU that only compiles."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numba.cuda, "is_available", lambda: True)
        gpu = types.SimpleNamespace(compute_capability=COMPUTE_CAPABILITY)
        dispatcher = importlib.import_module("numba.cuda.dispatcher")
        patch.setattr(dispatcher, "get_current_device", lambda: gpu)
        backend = importlib.import_module("scratchnet.backends.cuda")
        compiler = Compiler()
        compiler.backend = backend
        patch.setattr(backend.device, "_start", compiler.start)
        patch.setattr(backend.arrays, "_allocate", lambda dtype, size: Memory(size, dtype))
        yield compiler


def _step(network, shape, batch, optimizers=(Adam,)):
    network.to("cuda")
    x = np.zeros((batch, *shape), np.float32)
    labels = np.zeros(batch, np.int64)
    loss = SoftmaxCrossEntropy().to("cuda")
    for optimizer in optimizers:
        loss.forward(network.forward(x, training=True), labels)
        network.backward(loss.backward(), need_dx=False)
        clip_gradients(network.parameters(), 1.0)
        optimizer(network.parameters(), 0.1).step()
    network.forward(x)


@pytest.mark.parametrize("operator", ["convolution", "involution"])
@pytest.mark.parametrize("dataset", ["mnist", "fashion-mnist", "cifar10"])
def test_networks_of_the_report(compiler, dataset, operator):
    batch = 256 if dataset == "cifar10" else 128
    before = compiler.backend.device.launches
    network = report_network(dataset, operator)
    _step(network, INPUT_SHAPES[dataset], batch, (Adam, SGD))
    assert compiler.backend.device.launches > before


@pytest.mark.parametrize(
    ("C", "size", "K", "stride"),
    [
        (16, 32, 3, 1),
        (64, 32, 7, 1),
        (128, 16, 7, 2),
        (256, 8, 7, 1),
        (512, 7, 7, 1),
        (20, 9, 5, 1),
    ],
)
def test_involutions_of_rednet(compiler, C, size, K, stride):
    layer = Involution2D(C, K, groups=max(1, C // 16), reduction=4, stride=stride).to("cuda")
    x = compiler.backend.to_device(np.zeros((8, size, size, C), np.float32))
    y = layer.forward(x, training=True)
    layer.backward(y)
    kernel = compiler.backend.to_device(np.zeros((*y.shape[:3], max(1, C // 16), K, K), np.float32))
    y = compiler.backend.involution_forward(x, kernel, stride)
    compiler.backend.involution_backward(y, x, kernel, stride)


@pytest.mark.parametrize(("C", "batch"), [(64, 32), (256, 128)])
def test_large_products(compiler, C, batch):
    x = np.zeros((batch, 14, 14, C), np.float32)
    weight = np.zeros((3, 3, C, C), np.float32)
    compiler.backend.conv2d_backward(x, x, weight, 1, "same")
    compiler.backend.conv2d_forward(x, weight, None, 1, "same")
    rows = np.zeros((4096, 1024), np.float32)
    square = np.zeros((1024, 1024), np.float32)
    compiler.backend.dense_backward(
        compiler.backend.dense_forward(rows, square, None), rows, square
    )


def test_attention_and_norm_as_layers(compiler):
    x = compiler.backend.to_device(np.zeros((4, 14, 14, 64), np.float32))
    for layer in (WindowAttention2D(64, 7, groups=4), BatchNorm(64)):
        layer.to("cuda").backward(layer.forward(x, training=True))
        layer.forward(x)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("operator", OPERATORS)
def test_operators(compiler, operator, dtype):
    """A small and a large case of each; of float64, which only gradient checks use, one."""
    case = CASES[operator]
    for sizes in (case.large, case.nasties[-1])[: 1 if dtype == np.float64 else 2]:
        arguments = cast(case.draw(sizes), dtype)
        outputs = run_forward(compiler.backend, operator, arguments)
        first = compiler.backend.to_host(outputs[case.outputs[0]])
        cotangent = cotangent_like(first, 1)
        run_backward(compiler.backend, operator, arguments, outputs, cotangent)
