"""The one place that imports `numba.cuda`, and what kernels need that its targets do not share.

Three targets run the same kernels: Numba's built-in one, the `numba-cuda` package that took over
from it, and the simulator (NUMBA_ENABLE_CUDASIM=1, set before the first import), which runs each
GPU thread as a thread of Python and checks every index. The simulator has no pointers and checks
no types, so the five helpers below that reach beneath Numba exist twice: for a GPU as LLVM
instructions, for the simulator as the Python that says the same.

    load4, store4   four neighbours in memory as one 128-bit access; their first index is a multiple
                    of 4, and every array starts at an address that allows it
    staged          shared memory that load4 may read; see `staging`
    fetch           memory to shared memory, while the thread goes on; see `fetching`
    uniform         the dropout generator, which wants 64-bit integers that wrap

Arrays are indexed by unsigned numbers; a signed one would pay at each access for Python's negative
indices. Two kinds, as a GPU computes in 32 bits and addresses memory in 64:

    at(...)     an index taken apart and put together in 32 bits: half the registers, and a division
                by a constant in 3 instructions instead of 20. What is negative wraps to something
                huge, so `at(s) < W` asks both whether s >= 0 and whether s < W
    far(...)    a 64-bit base plus a constant, which becomes part of the load instruction itself.
                Only the sum must be in bounds
"""

import contextlib
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from scratchnet.backends import BackendError
from scratchnet.backends.cuda import cache

_INSTALL = "pip install -e '.[gpu]' in scratchnet's folder"

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"

try:
    import numba
    from numba import cuda, float32, float64, uint32, uint64

    if not SIMULATED and cuda.implementation == "NVIDIA":
        from cuda import core as cuda_core  # which numba-cuda stands on
except ImportError as error:  # numba-cuda without its bindings, or one that is too old
    raise BackendError(
        f"the cuda backend needs numba-cuda with its CUDA wheels ({error}): {_INSTALL}"
    ) from error

# Blocks whose threads own one element, then the one a grid further on. An H200 keeps 2112 such
# blocks busy; two blocks of 16 are enough for the simulator to have neighbours and a tail.
THREADS = 16 if SIMULATED else 256
MOST_BLOCKS = 2 if SIMULATED else 2112
BLOCK_BYTES = 48 * 1024  # of shared memory: what every GPU gives a block without asking
MULTIPROCESSORS = 2 if SIMULATED else 132  # of an H200
SHARED_BYTES, RESERVED_BYTES = 227 * 1024, 1024  # of one of them; of it for each block
LARGEST = 2**31 - 1  # elements of an array: what `at` and signed sums of indices hold

if SIMULATED:  # where integers are Python's

    def at(value):
        return int(value) % 2**32

    far = int
else:
    at, far = uint32, uint64
_NUMBERS = int, float, np.generic
_NUMBA_TYPES = {np.dtype(np.float32): float32, np.dtype(np.float64): float64}


def require_gpu() -> None:
    """Raises BackendError, with what is missing and what to install, where no kernel can run."""
    if SIMULATED or cuda.is_available():
        return
    why = [line.strip(" .") for line in str(cuda.cuda_error() or "").splitlines() if line.strip()]
    raise BackendError(
        "the cuda backend needs an NVIDIA GPU with its driver and a CUDA toolkit, and Numba finds "
        f"none here{f' ({why[0]})' if why else ''}; on a machine with a GPU, {_INSTALL} brings a "
        "toolkit for CUDA 13, and [gpu-cu12] one for older drivers, see nvidia-smi"
    )


def capability() -> tuple[int, int]:
    """The GPU's compute capability."""
    return tuple(cuda.get_current_device().compute_capability)


def numba_type(dtype: np.dtype) -> Any:
    """The type by which a kernel knows a dtype: it also converts numbers, `dtype(0)`."""
    return _NUMBA_TYPES[np.dtype(dtype)]


# Launches

launches = 0  # kernels started by this process
_configured: dict[tuple, Any] = {}  # by blocks and threads; for Numba's own launches by kernel too
_loaded: dict[tuple, Any] = {}  # by kernel and kinds of arguments


class _Thread(threading.local):
    """What is this thread's alone."""

    entered = False  # the GPU's context
    default: Any = None  # stream, as cuda.core names it
    stream: Any = None  # another one that launches go to
    noted: list[tuple] | None = None  # launches, where they are noted instead of started


_thread = _Thread()


def launch(kernel: Any, blocks: int | tuple, threads: int | tuple, *arguments: Any) -> None:
    """Start a kernel on the default stream, or on_stream's, which runs one after the other.

    Arguments are `Array`s, numbers, and tuples of them. No blocks are no launch.
    """
    global launches
    if not (blocks if isinstance(blocks, int) else min(blocks)):
        return
    if _thread.noted is not None:
        _thread.noted.append((kernel, blocks, threads, tuple(_flat(arguments))))
        return
    launches += 1
    _start(kernel, blocks, threads, arguments)


def launch_over(count: int, kernel: Any, *arguments: Any) -> None:
    """Start a kernel whose threads share out `count` elements."""
    blocks = min(-(-count // THREADS), MOST_BLOCKS)
    launch(kernel, blocks, THREADS, *arguments, count)


@contextlib.contextmanager
def on_stream(stream: Any) -> Iterator[None]:
    """This thread's launches go to a stream of cuda.core, or into a CUDA graph that it builds.

    Only with numba-cuda. Memory is handed on in the order of one stream: before this one starts,
    wait for what was launched before (`synchronize`), and before others use arrays made here, for
    this one.
    """
    before = _thread.stream
    _thread.stream = stream
    try:
        yield
    finally:
        _thread.stream = before


@contextlib.contextmanager
def noting() -> Iterator[list[tuple]]:
    """This thread's launches are noted in a list instead of started, for `started_together`."""
    _thread.noted = []
    try:
        yield _thread.noted
    finally:
        _thread.noted = None


def started_together(noted: list[tuple]) -> Callable[[], None]:
    """A function that starts all launches noted; from the second time on with one call, as a CUDA
    graph, where there are some.

    The first time, each starts by itself: the driver wants to have loaded a graph's kernels before.
    """
    loaded, graph = False, None

    def start() -> None:
        global launches
        nonlocal loaded, graph
        launches += len(noted)  # which also keeps the memory that they read and write
        if loaded and graph is None and _start is _start_by_driver:
            graph = _graph_of(noted)
        if graph is None:
            _start_each(noted)
        else:
            graph.launch(_default_stream())
        loaded = True

    return start


def _graph_of(noted: list[tuple]) -> Any:
    builder = cuda_core.Device().create_graph_builder().begin_building()
    with on_stream(builder):
        _start_each(noted)
    return builder.end_building().complete()


def _start_each(noted: list[tuple]) -> None:
    for each in noted:
        _start(*each)


def enter_context() -> None:
    """Make the GPU's context that of this thread, which the driver's functions ask for."""
    if not _thread.entered:
        cuda.current_context()
        _thread.entered = True


def compile_ptx(kernel: Any, arguments: list, compute: tuple[int, int]) -> str:
    """The kernel's PTX for arguments like these."""
    return cuda.compile_ptx(kernel.py_func, signature_of(arguments), cc=compute)[0]


def signature_of(arguments: list) -> tuple:
    """Numba's types of a kernel's arguments."""
    return tuple(_type_of(argument) for argument in arguments)


def _type_of(argument: Any) -> Any:
    if isinstance(argument, tuple):
        return numba.types.BaseTuple.from_types([_type_of(part) for part in argument])
    if isinstance(argument, _NUMBERS):
        return numba.typeof(argument)
    return numba.types.Array(numba.from_dtype(argument.dtype), 1, "C")


def _start_by_numba(
    kernel: Any, blocks: int | tuple, threads: int | tuple, arguments: tuple
) -> None:
    arguments = _flat(arguments)
    if SIMULATED:  # where a kernel has one configuration, its last
        kernel[blocks, threads](*arguments)
        return
    key = kernel, blocks, threads
    configured = _configured.get(key)
    if configured is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that few blocks leave a GPU idle; some work is small
            configured = _configured[key] = kernel[blocks, threads]
    configured(*arguments)


def _flat(arguments: tuple) -> list:
    """The arguments as Numba takes them: for an `Array` its memory."""
    return [
        tuple(_flat(argument))
        if isinstance(argument, tuple)
        else getattr(argument, "memory", argument)
        for argument in arguments
    ]


def _start_by_driver(
    kernel: Any, blocks: int | tuple, threads: int | tuple, arguments: tuple
) -> None:
    """Numba compiles, the driver's Python bindings start.

    Numba looks at each argument anew at every launch, which takes longer than most kernels: a step
    of the report's networks is four times faster this way. The numbers of an array stay with it.
    """
    kinds, numbers = [kernel], []
    for argument in arguments:
        kind = type(argument)
        if kind is tuple:
            kinds.append(len(argument))
            for part in argument:
                _append(part, kinds, numbers)
        else:
            _append(argument, kinds, numbers)
    loaded = _loaded.get(key := tuple(kinds))
    if loaded is None:
        loaded = _loaded[key] = _load(kernel, _flat(arguments))
    config = _configured.get((blocks, threads))
    if config is None:
        config = cuda_core.LaunchConfig(grid=blocks, block=threads)
        _configured[blocks, threads] = config
    stream = _default_stream() if _thread.stream is None else _thread.stream
    cuda_core.launch(stream, config, loaded.kernel, *numbers)


def _default_stream() -> Any:
    if _thread.default is None:
        enter_context()
        _thread.default = cuda_core.Stream.from_handle(0)
    return _thread.default


def _append(argument: Any, kinds: list, numbers: list) -> None:
    """A number, or what Numba's kernels take for an array: of seven they read address and sizes."""
    if isinstance(argument, _NUMBERS):
        kinds.append(type(argument))
        numbers.append(argument)
        return
    array = getattr(argument, "memory", argument)
    try:
        kind, own = array.scratchnet_numbers
    except AttributeError:
        size, itemsize = array.size, array.dtype.itemsize
        address = array.device_ctypes_pointer.value
        kind, own = array.dtype, (0, 0, size, itemsize, address, size, itemsize)
        array.scratchnet_numbers = kind, own
    kinds.append(kind)
    numbers += own


_start = _start_by_numba if SIMULATED or cuda.implementation != "NVIDIA" else _start_by_driver


class _Loaded(NamedTuple):
    """A kernel on the GPU, and the code that has to live as long."""

    kernel: Any
    code: Any


def _load(kernel: Any, arguments: list) -> _Loaded:
    compiled = cache.recall(
        kernel, signature_of(arguments), capability(),
        lambda: compile_cubin(kernel, arguments, capability()),
    )  # fmt: skip
    name, _, cubin = compiled.partition(b"\0")
    code = cuda_core.ObjectCode.from_cubin(cubin)
    return _Loaded(code.get_kernel(name), code)


def compile_cubin(kernel: Any, arguments: list, compute: tuple[int, int]) -> bytes:
    """The kernel's name in the machine code for a GPU, a zero, and that code."""
    ptx = compile_ptx(kernel, arguments, compute)
    options = cuda_core.LinkerOptions(arch="sm_{}{}".format(*compute))
    linker = cuda_core.Linker(cuda_core.ObjectCode.from_ptx(ptx.encode()), options=options)
    (name,) = re.findall(r"\.visible \.entry (\w+)", ptx)
    return name.encode() + b"\0" + linker.link("cubin").code


# What reaches beneath Numba

if SIMULATED:
    from numba.cuda.simulator.kernel import _get_kernel_context

    class _SimulatedCuda:
        """`numba.cuda` outside of kernels, and in one the simulated block that is running.

        The simulator puts the block into the globals of a function for as long as the function
        runs. Threads that call device functions of other modules take it from each other that way.
        """

        def __getattr__(self, name: str) -> Any:
            block = _get_kernel_context()
            return getattr(numba.cuda if block is None else block, name)

    cuda = _SimulatedCuda()

    def load4(array, index):
        return array[index], array[index + 1], array[index + 2], array[index + 3]

    def store4(array, index, a, b, c, d):
        array[index], array[index + 1], array[index + 2], array[index + 3] = a, b, c, d

    def uniform(seed, element):
        mask = 2**64 - 1
        z = (int(seed) + (int(element) + 1) * 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return ((z ^ (z >> 31)) >> 11) * 2.0**-53

else:
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils

    if cuda.implementation == "NVIDIA":
        from numba.cuda.extending import intrinsic
    else:
        from numba.core.extending import intrinsic

    _SHARED = 3  # LLVM's address space

    def _vector_pointer(context, builder, array_type, array, index_type, index):
        """The address of four elements, their LLVM type and the alignment in bytes to rely on."""
        data = context.make_array(array_type)(context, builder, array).data
        index = context.cast(builder, index, index_type, types.uint64)
        vector = ir.VectorType(context.get_data_type(array_type.dtype), 4)
        pointer = builder.bitcast(builder.gep(data, [index]), ir.PointerType(vector))
        return pointer, vector, min(16, 4 * (array_type.dtype.bitwidth // 8))

    @intrinsic
    def load4(typingctx, array, index):
        signature = types.UniTuple(array.dtype, 4)(array, index)

        def generate(context, builder, signature, arguments):
            array_type, index_type = signature.args
            array, index = arguments
            pointer, _, alignment = _vector_pointer(
                context, builder, array_type, array, index_type, index
            )
            vector = builder.load(pointer)
            vector.align = alignment
            lanes = [builder.extract_element(vector, _lane(i)) for i in range(4)]
            return context.make_tuple(builder, signature.return_type, lanes)

        return signature, generate

    @intrinsic
    def store4(typingctx, array, index, a, b, c, d):
        signature = types.void(array, index, *[array.dtype] * 4)

        def generate(context, builder, signature, arguments):
            array_type, index_type = signature.args[:2]
            array, index, *lanes = arguments
            pointer, vector, alignment = _vector_pointer(
                context, builder, array_type, array, index_type, index
            )
            value = ir.Constant(vector, ir.Undefined)
            for i, lane in enumerate(lanes):
                value = builder.insert_element(value, lane, _lane(i))
            builder.store(value, pointer).align = alignment
            return context.get_dummy_value()

        return signature, generate

    def _lane(i):
        return ir.Constant(ir.IntType(32), i)

    _word, _address = ir.IntType(32), ir.IntType(64)
    _GLOBAL = 1  # LLVM's address space

    def _copier(vector):
        """Copies `vector` neighbours on their own, by instructions that GPUs have from 8.0 on."""

        @intrinsic
        def fetch(typingctx, stage, place, array, index, inside):
            signature = types.void(stage, place, array, index, types.boolean)

            def generate(context, builder, signature, arguments):
                stage_type, place_type, array_type, index_type, _ = signature.args
                stage, place, array, index, inside = arguments
                itemsize = array_type.dtype.bitwidth // 8
                nbytes = min(16, vector * itemsize) if itemsize == 4 else itemsize
                how = "cg" if nbytes == 16 else "ca"  # past the L1 cache, or through it
                copy = ir.InlineAsm(
                    ir.FunctionType(ir.VoidType(), [_word, _address, _word]),
                    f"cp.async.{how}.shared.global [$0], [$1], {nbytes}, $2;",
                    "r,l,r,~{memory}",
                    side_effect=True,
                )
                to = _address_in(context, builder, stage_type, stage, place_type, place, _SHARED)
                of = _address_in(context, builder, array_type, array, index_type, index, _GLOBAL)
                # Of no bytes read, zeros are written.
                size = builder.select(inside, ir.Constant(_word, nbytes), ir.Constant(_word, 0))
                for first in range(0, vector * itemsize, nbytes):
                    further = ir.Constant(_address, first)
                    to_word = builder.trunc(builder.add(to, further), _word)
                    builder.call(copy, [to_word, builder.add(of, further), size])
                return context.get_dummy_value()

            return signature, generate

        return fetch

    def _address_in(context, builder, array_type, array, index_type, index, space):
        data = context.make_array(array_type)(context, builder, array).data
        index = context.cast(builder, index, index_type, types.uint64)
        element = context.get_data_type(array_type.dtype)
        pointer = builder.addrspacecast(builder.gep(data, [index]), element.as_pointer(space))
        return builder.ptrtoint(pointer, _address)

    @lru_cache
    def _asynchronous(instruction):
        """A device function that is one instruction of those that copy."""

        @intrinsic
        def call(typingctx):
            signature = types.void()

            def generate(context, builder, signature, arguments):
                kind = ir.FunctionType(ir.VoidType(), [])
                builder.call(ir.InlineAsm(kind, instruction, "~{memory}", True), [])
                return context.get_dummy_value()

            return signature, generate

        return call

    @cuda.jit(device=True)
    def uniform(seed, element):
        """Number `element` of the stream `seed`, as `reference/dropout.py` defines it."""
        z = uint64(seed + uint64(element + 1) * uint64(0x9E3779B97F4A7C15))
        z = uint64((z ^ (z >> uint64(30))) * uint64(0xBF58476D1CE4E5B9))
        z = uint64((z ^ (z >> uint64(27))) * uint64(0x94D049BB133111EB))
        z = z ^ (z >> uint64(31))
        return float64(z >> uint64(11)) * 2.0**-53


@lru_cache
def staging(size: int, dtype: Any) -> Callable:
    """A function for kernels that returns this block's shared array of `size` elements.

    Numba aligns shared arrays to one element; these start where load4 may read. A kernel calls one
    such function once: in the simulator a second call returns the same memory.
    """
    if SIMULATED:
        return cuda.jit(device=True)(lambda: cuda.shared.array(size, dtype))
    name = f"scratchnet_stage_{size}_{dtype}"

    @intrinsic
    def staged(typingctx):
        signature = types.Array(dtype, 1, "C")()

        def generate(context, builder, signature, arguments):
            element = context.get_data_type(dtype)
            content = ir.ArrayType(element, size)
            memory = cgutils.add_global_variable(builder.module, content, name, _SHARED)
            memory.align = 16
            memory.initializer = ir.Constant(content, ir.Undefined)
            array = context.make_array(signature.return_type)(context, builder)
            itemsize = context.get_constant(types.intp, dtype.bitwidth // 8)
            context.populate_array(
                array,
                data=builder.addrspacecast(memory, array.data.type, "generic"),
                shape=[context.get_constant(types.intp, size)],
                strides=[itemsize],
                itemsize=itemsize,
                meminfo=None,
            )
            return array._getvalue()

        return signature, generate

    return staged


@cuda.jit(device=True)
def load1(array, index):
    """`load4` where channels do not come in fours."""
    return (array[index],)


@cuda.jit(device=True)
def store_vector1(array, index, values, first):
    array[index] = values[first]


@cuda.jit(device=True)
def store_vector4(array, index, values, first):
    """Four neighbours of a local array to memory, at once."""
    store4(array, index, values[first], values[first + 1], values[first + 2], values[first + 3])


ACCESS = {4: (load4, store_vector4), 1: (load1, store_vector1)}  # by length of vector


@lru_cache
def fetching(vector: int) -> Callable:
    """How a kernel brings `vector` neighbours at once into its stage.

    fetch(stage, place, array, index, inside)   copies array[index], ...; zeros where not inside

    The first GPUs that copy without keeping the thread are those of compute capability 8.0.
    """
    if _copies_alone():
        return _copier(vector)
    load, store = ACCESS[vector]

    @cuda.jit(device=True)
    def fetch(stage, place, array, index, inside):
        if inside:
            values = load(array, index)
            for q in range(vector):
                stage[far(place + q)] = values[q]
        else:
            for q in range(vector):
                stage[far(place + q)] = 0

    return fetch


@lru_cache
def rounds_of_fetches(later: int) -> tuple[Callable, Callable]:
    """How a kernel waits for what it fetches.

    end_round()   ends a round of fetches of this thread
    fetched()     waits for all rounds but the last `later` ones
    """
    if _copies_alone():
        wait = f"cp.async.wait_group {later};"
        return _asynchronous("cp.async.commit_group;"), _asynchronous(wait)
    nothing = cuda.jit(device=True)(lambda: None)
    return nothing, nothing


def _copies_alone() -> bool:
    return not SIMULATED and capability() >= (8, 0)


def gpu_name() -> str:
    """The GPU as it calls itself."""
    if SIMULATED:
        return "simulated by Numba"
    name = cuda.get_current_device().name
    return name.decode() if isinstance(name, bytes) else name


def describe() -> str:
    """Numba, its target and the GPU, in a line."""
    target = "" if SIMULATED else f"{cuda.implementation} target, "
    return f"Numba {numba.__version__}, {target}{gpu_name()}"
