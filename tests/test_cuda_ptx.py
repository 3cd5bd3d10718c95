"""Every kernel compiles for a GPU that is not there, and runs on one made of NumPy.

Each launch compiles its kernel to PTX for compute capability 9.0: types, which the simulator does
not know. Then `ptx_machine.py` executes the PTX, with the tiles that a GPU would get, and finds
races, values that nobody wrote, and accesses out of bounds; or, for sizes that it would take hours
for, arrays have no memory and nothing runs. Needs the compiler, not a driver:

    pip install -e '.[dev,gpu]' && pytest tests/test_cuda_ptx.py -s

With -s, registers and spills of each kernel are printed where ptxas is at hand.
"""

import copy
import ctypes
import functools
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
from checks import cast, check_parity, cotangent_like, run_backward, run_forward
from gpu_ops import OnHost
from ptx_machine import Fault, Machine, Program
from ptx_machine import Memory as DeviceMemory

from scratchnet import SGD, Adam, SoftmaxCrossEntropy, clip_gradients
from scratchnet.backends import OPERATORS, reference
from scratchnet.data import Batches, Split
from scratchnet.layers import BatchNorm, Dropout, Involution2D, Sequential, WindowAttention2D
from scratchnet.models import report_network
from scratchnet.models.report import INPUT_SHAPES
from scratchnet.training import _step_of

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

    device_ctypes_pointer = ctypes.c_uint64(0)

    def copy_to_device(self, array: np.ndarray) -> None:
        pass

    def copy_to_host(self) -> np.ndarray:
        return np.zeros(self.size, self.dtype)


class Compiler:
    """Stands in for a driver: kernels are compiled, and started on a machine if there is one."""

    def __init__(self) -> None:
        self.ptxas = shutil.which("ptxas")
        self.machine: Machine | None = None
        self.graphs: list[Graph] = []

    def allocate(self, dtype: np.dtype, size: int) -> Memory | DeviceMemory:
        return DeviceMemory(self.machine, size, dtype) if self.machine else Memory(size, dtype)

    def load(self, kernel, arguments) -> types.SimpleNamespace:
        ptx = self.backend.device.compile_ptx(kernel, arguments, COMPUTE_CAPABILITY)
        name = kernel.py_func.__name__
        if name.startswith(WITHOUT_LOCAL_MEMORY):
            assert ".local" not in ptx, f"{name} keeps numbers in local memory"
        if "float64" not in str([kind_of(argument) for argument in arguments]):
            double = re.search(r"\s(?:add|mul|fma|div)\S*\.f64.*", ptx)
            assert not double, f"{name} computes in float64 what is float32:{double.group()}"
        print(f"{name:28} {self.registers(ptx)}")
        return types.SimpleNamespace(kernel=Program(ptx))

    def launch(self, stream, config, program, *numbers) -> None:
        self.stream = stream
        if isinstance(stream, Graph):
            stream.launches.append((config, program, numbers))
        elif self.machine:
            self.machine.launch(program, config.grid, config.block, numbers)

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


class Graph:
    """Stands in for cuda.core's builder of a CUDA graph, and for the graph."""

    def __init__(self, compiler: Compiler):
        self.compiler = compiler
        self.launches: list[tuple] = []
        compiler.graphs.append(self)

    def begin_building(self) -> "Graph":
        return self

    end_building = complete = begin_building

    def launch(self, stream) -> None:
        for launch in self.launches:
            self.compiler.launch(stream, *launch[:2], *launch[2])


def kind_of(argument):
    if isinstance(argument, tuple):
        return [kind_of(part) for part in argument]
    return getattr(argument, "dtype", type(argument))


class NothingFree(dict):
    """Keeps no memory for the next array, so that what one left behind is not found in another."""

    def __missing__(self, key):
        return []


@pytest.fixture(scope="module")
def compiler():
    """The cuda backend, on a GPU that only compiles."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numba.cuda, "is_available", lambda: True)
        patch.setattr(numba.cuda, "current_context", lambda: None)
        gpu = types.SimpleNamespace(compute_capability=COMPUTE_CAPABILITY)
        dispatcher = importlib.import_module("numba.cuda.dispatcher")
        patch.setattr(dispatcher, "get_current_device", lambda: gpu)
        backend = importlib.import_module("scratchnet.backends.cuda")
        compiler = Compiler()
        compiler.backend = backend
        driver = types.SimpleNamespace(
            launch=compiler.launch,
            LaunchConfig=types.SimpleNamespace,
            Stream=types.SimpleNamespace(from_handle=int),
            Device=lambda: types.SimpleNamespace(create_graph_builder=lambda: Graph(compiler)),
        )
        patch.setattr(backend.device, "cuda_core", driver)
        patch.setattr(backend.device, "_load", compiler.load)
        patch.setattr(backend.device, "capability", lambda: COMPUTE_CAPABILITY)
        patch.setattr(backend.arrays, "_allocate", compiler.allocate)
        patch.setattr(backend.arrays, "_upload", lambda array, memory: memory.copy_to_device(array))
        patch.setattr(backend.arrays, "_download", lambda memory: memory.copy_to_host())
        patch.setattr(backend.arrays, "_free", NothingFree())
        yield compiler


@pytest.fixture
def on_host(compiler):
    """The backend's functions for NumPy arrays, on a machine that runs the kernels."""
    updates = importlib.import_module("scratchnet.backends.cuda.updates")
    updates._table.cache_clear()
    compiler.machine = Machine()
    yield OnHost()
    compiler.machine = None
    updates._table.cache_clear()


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


@pytest.mark.parametrize("operator", OPERATORS)
def test_operators_of_float64(compiler, operator):
    """Which only gradient checks use."""
    case = CASES[operator]
    arguments = cast(case.draw(case.nasties[-1]), np.float64)
    outputs = run_forward(compiler.backend, operator, arguments)
    first = compiler.backend.to_host(outputs[case.outputs[0]])
    run_backward(compiler.backend, operator, arguments, outputs, cotangent_like(first, 1))


# Executed


@pytest.mark.parametrize("operator", OPERATORS)
def test_operators_agree_with_the_reference(on_host, operator):
    case = CASES[operator]
    for sizes in (*case.nasties, case.large):
        check_parity(on_host, reference, operator, case.draw(sizes), np.float32, sizes["seed"])


@pytest.mark.parametrize(
    ("shape", "K", "G", "stride"),
    [
        ((2, 9, 7, 256), 7, 16, 1),
        ((1, 9, 40, 128), 7, 8, 1),
        ((1, 9, 8, 64), 7, 4, 2),
        ((1, 8, 9, 160), 3, 8, 1),
        ((2, 20, 33, 16), 3, 1, 1),
        ((1, 9, 9, 20), 5, 1, 1),
    ],
)
def test_involutions_of_several_blocks(on_host, shape, K, G, stride):
    N, H, W, C = shape
    sizes = {"N": N, "H": H, "W": W, "K": K, "G": G, "per_group": C // G}
    sizes |= {"stride": stride, "dilation": 1, "seed": 1}
    arguments = CASES["involution"].draw(sizes)
    check_parity(on_host, reference, "involution", arguments, np.float32, 1)


@pytest.mark.parametrize(("M", "K", "N"), [(300, 132, 260), (1000, 30, 10), (129, 65, 127)])
def test_products_of_several_tiles(on_host, M, K, N):
    rng = np.random.default_rng(0)
    arguments = {"x": rng.standard_normal((M, K)), "bias": rng.standard_normal(N)}
    arguments["weight"] = rng.standard_normal((K, N))
    check_parity(on_host, reference, "dense", arguments, np.float32, 1)


@pytest.mark.parametrize("operator", ["convolution", "involution"])
@pytest.mark.parametrize("dataset", ["mnist", "fashion-mnist", "cifar10"])
def test_training_steps_follow_the_reference(on_host, dataset, operator):
    x = np.random.default_rng(0).standard_normal((3, *INPUT_SHAPES[dataset]), np.float32)
    labels, losses = np.array([1, 2, 3]), {}
    drawn = report_network(dataset, operator)
    for backend in ("reference", "cuda"):
        network = copy.deepcopy(drawn).to(backend)
        optimizer = SGD(network.parameters(), 1e-3, momentum=0.9)
        loss = SoftmaxCrossEntropy().to(backend)
        losses[backend] = []
        for _ in range(3):
            losses[backend].append(float(loss.forward(network.forward(x, training=True), labels)))
            network.backward(loss.backward(), need_dx=False)
            optimizer.step()
    np.testing.assert_allclose(losses["cuda"], losses["reference"], rtol=1e-4)


def test_a_replayed_graph_is_the_step(compiler, on_host):
    *before, last = report_network("mnist", "involution").layers
    drawn = Sequential(*before, Dropout(0.5, rng=np.random.default_rng(1)), last).to("cuda")
    states = []
    for record in (False, True):
        network = copy.deepcopy(drawn)
        optimizer, loss = Adam(network.parameters(), 1e-3), SoftmaxCrossEntropy().to("cuda")
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (6, *INPUT_SHAPES["mnist"]), dtype=np.uint8)
        batches = Batches(Split(images, rng.integers(0, 10, 6)), 2, mean=0.5)
        step = _step_of(network, loss, optimizer, batches, None if record else 1e9)
        for n, batch in enumerate(batches.raw()):
            optimizer.lr = 1e-3 / (1 + n)
            step(*batch)
        states.append(network.state() | optimizer.state())
    (graph,) = compiler.graphs
    assert len(graph.launches) > 20
    for name, value in states[0].items():
        np.testing.assert_array_equal(states[1][name], value, err_msg=name)


# The driver, and the machine itself


def test_launches_go_to_the_stream_that_is_asked_for(compiler):
    relu = compiler.backend.relu_forward
    x = compiler.backend.to_device(np.zeros(3, np.float32))
    with compiler.backend.device.on_stream("theirs"):
        relu(x)
    assert compiler.stream == "theirs"
    relu(x)
    assert compiler.stream == 0


def test_code_is_compiled_once_however_many_blocks_it_takes(compiler, monkeypatch):
    device, loads = compiler.backend.device, []
    monkeypatch.setattr(device, "_loaded", {})
    monkeypatch.setattr(device, "_load", lambda *given: loads.append(1) or compiler.load(*given))
    for size in (3, 3000, 300000):
        compiler.backend.relu_forward(compiler.backend.to_device(np.zeros(size, np.float32)))
    assert len(loads) == 1


def test_gpus_before_8_0_fetch_through_registers(compiler, monkeypatch):
    device = compiler.backend.device
    involution = importlib.import_module("scratchnet.backends.cuda.involution")
    sizes = involution.Sizes(H=9, W=11, C=8, G=2, K=3, stride=1, dilation=1, Ho=9, Wo=11)
    float32 = np.dtype(np.float32)
    x = types.SimpleNamespace(dtype=float32)
    for capability, copies in (((7, 5), False), ((9, 0), True)):
        monkeypatch.setattr(device, "capability", lambda capability=capability: capability)
        for cached in (
            device.fetching,
            device.rounds_of_fetches,
            involution._stage_image,
            involution._read_weights,
            involution._forward_kernel,
        ):
            cached.cache_clear()
        tile = involution.forward_tile(sizes, float32, involution.READ)
        kernel = involution._forward_kernel(numba.float32, sizes, tile, involution.READ)
        ptx = device.compile_ptx(kernel, [x, (x,), x], capability)
        assert ("cp.async" in ptx) == copies


def _scaled(factor):
    scale = numba.cuda.jit(device=True)(lambda value: factor * value)

    @numba.cuda.jit
    def kernel(x):
        x[0] = scale(x[0])

    return kernel


def test_compiled_code_is_kept_on_disk_until_something_changes(compiler, monkeypatch, tmp_path):
    cache = importlib.import_module("scratchnet.backends.cuda.cache")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(cache, "_folder", functools.lru_cache(cache._folder.__wrapped__))
    compiled = []

    def recall(kernel, signature=(numba.float32[:],), capability=(9, 0)):
        def compile():
            compiled.append(kernel)
            return b"code %d" % len(compiled)

        return cache.recall(kernel, signature, capability, compile)

    assert recall(_scaled(2)) == recall(_scaled(2)) == b"code 1"
    assert recall(_scaled(3)) == b"code 2"  # what a function that it calls closes over
    assert recall(_scaled(2), (numba.float64[:],)) == b"code 3"
    assert recall(_scaled(2), capability=(8, 0)) == b"code 4"
    assert recall(_scaled(object())) == b"code 5"  # which cannot be told from others
    assert recall(_scaled(2)) == b"code 1"
    (folder,) = tmp_path.iterdir()
    theirs = tmp_path / "cuda-samples"
    theirs.mkdir()
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    assert recall(_scaled(2)) == recall(_scaled(2)) == b"code 6"
    monkeypatch.setattr(cache, "_SOURCES", "other")
    cache._folder.cache_clear()
    assert recall(_scaled(2)) == b"code 7"
    assert not folder.exists() and theirs.exists()
    monkeypatch.setattr(cache, "_folder", lambda: tmp_path / "read-only" / "folder")
    assert recall(_scaled(2)) == b"code 8"


def _launch(compiler, kernel, threads, *arrays):
    compiler.machine = Machine()
    try:
        arrays = [compiler.backend.to_device(array) for array in arrays]
        compiler.backend.device.launch(numba.cuda.jit(kernel), 1, threads, *arrays)
        return [compiler.backend.to_host(array) for array in arrays]
    finally:
        compiler.machine = None


def _mirrored_in_shared_memory(wait):
    """Each thread passes its number on to the thread at the other end."""

    def kernel(x):
        shared = numba.cuda.shared.array(64, numba.float32)
        t = numba.cuda.threadIdx.x
        shared[t] = x[t]
        if wait:
            numba.cuda.syncthreads()
        x[t] = shared[63 - t]

    return kernel


def _one_too_far(x):
    x[numba.uint32(numba.cuda.threadIdx.x + 1)] = 0


def _all_to_one(x):
    x[0] = x[numba.cuda.threadIdx.x]


def _never_written(x):
    shared = numba.cuda.shared.array(64, numba.float32)
    x[numba.cuda.threadIdx.x] = shared[numba.cuda.threadIdx.x]


def _two_barriers(x):
    if numba.cuda.threadIdx.x < 32:
        numba.cuda.syncthreads()
    else:
        x[numba.cuda.threadIdx.x] = 0
        numba.cuda.syncthreads()


def test_the_machine_runs_what_is_right(compiler):
    x = np.arange(64, dtype=np.float32)
    (mirrored,) = _launch(compiler, _mirrored_in_shared_memory(wait=True), 64, x)
    np.testing.assert_array_equal(mirrored, x[::-1])


@pytest.mark.parametrize(
    ("kernel", "fault"),
    [
        (_mirrored_in_shared_memory(wait=False), "nobody wrote|race"),
        (_one_too_far, "out of bounds"),
        (_all_to_one, "race"),
        (_never_written, "nobody wrote"),
        (_two_barriers, "barrier"),
    ],
)
def test_the_machine_finds_what_is_wrong(compiler, kernel, fault):
    with pytest.raises(Fault, match=fault):
        _launch(compiler, kernel, 64, np.ones(64, np.float32))
