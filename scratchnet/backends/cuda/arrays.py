"""Arrays that stay on the GPU, and the memory they come from.

Kernels see every array flat; an `Array` is such memory with a shape. A reshape is then free, and a
launch hands over one axis of strides instead of six.

Memory is not given back when an array is gone but kept for the next one of its size, since asking
the driver for some takes longer than most kernels, and a training step asks for the same sizes
every time. All kernels run one after the other on one stream, so a buffer may be handed on while a
kernel that reads it is still waiting. The price is memory that nobody uses until it runs short.
Launches that are recorded to be started again have a `Pool` of their own, as they write to the same
memory each time.

What comes from the host goes through pinned memory, which the GPU fetches while the host goes on; a
copy from anywhere else first waits for every kernel before it, and a training would wait so twice a
step. The driver is asked for a copy without Numba's own method around it, which takes twenty times
as long.
"""

import contextlib
import itertools
import math
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from scratchnet.backends import BackendError
from scratchnet.backends.cuda.device import LARGEST, SIMULATED, cuda, enter_context
from scratchnet.checks import NOT_PLAIN

ALIGNMENT = 16  # bytes: what load4 reads at once
OUT_OF_MEMORY = 2  # the driver's number for it
LEGACY_STREAM = 1  # the number of the default stream in `__cuda_array_interface__`
STAGES, STAGE_BYTES = 4, 8 * 2**20  # of pinned memory; larger arrays go without

Memories = dict[tuple, list]  # by dtype and size

_free: Memories = defaultdict(list)  # what nobody holds
# What arrays and pools hold, by id. Without this reference of our own, those that die in a cycle
# would take their memory along: the garbage collector tells Numba before it calls __del__ below.
_held: dict[int, Any] = {}
_stages: list[tuple] = []  # pinned memory, the event after which it is free again, the stream
_staging = threading.Lock()


class Pool:
    """Memory for the arrays of a recording, and for no others until it is closed.

    free       what its arrays have left, to be written anew by later ones of the same step
    uploaded   arrays that came from the host while it was recorded: nothing of the step may write
               over them before they are read again
    """

    def __init__(self) -> None:
        self.free: Memories = defaultdict(list)
        self.uploaded: list[Array] = []
        self.closed = False

    def close(self) -> None:
        """Let others have the memory, now and when the arrays that still hold some are gone."""
        self.closed = True
        for key, memories in self.free.items():
            _free[key].extend(_held.pop(id(memory)) for memory in memories)
        self.free.clear()
        self.uploaded.clear()


class _Thread(threading.local):
    pool: Pool | None = None  # that this thread's arrays are made from


_thread = _Thread()


@contextlib.contextmanager
def from_pool(pool: Pool | None) -> Iterator[None]:
    """This thread's new arrays take memory from the pool, and return it there; None: from none."""
    before = _thread.pool
    _thread.pool = pool
    try:
        yield
    finally:
        _thread.pool = before


class _Buffer:
    """Holds device memory while an array needs it, then returns it to the free ones."""

    __slots__ = ("memory", "key", "pool")

    def __init__(self, key: tuple):
        self.key, self.memory, self.pool = key, None, _thread.pool
        free = (self.pool and self.pool.free[key]) or _free[key]
        self.memory = free.pop() if free else _allocate(*key)
        _held[id(self.memory)] = self.memory

    def __del__(self):
        if self.memory is None:
            return
        if self.pool is None or self.pool.closed:
            _free[self.key].append(_held.pop(id(self.memory)))
        else:
            self.pool.free[self.key].append(self.memory)


def _allocate(dtype: np.dtype, size: int) -> Any:
    driver_error = cuda.cudadrv.driver.CudaAPIError
    try:
        return cuda.device_array(size, dtype)
    except driver_error as error:
        if error.code != OUT_OF_MEMORY:  # of a kernel before, which shows at the next call
            raise
        release_memory()
    try:
        return cuda.device_array(size, dtype)
    except driver_error as error:
        mebibytes = size * dtype.itemsize / 2**20
        raise BackendError(
            f"the GPU has no memory for {mebibytes:,.0f} MiB more: take a smaller batch or network "
            f"({error})"
        ) from error


def release_memory() -> None:
    """Give the memory that no array holds back to the driver."""
    _free.clear()


class Array:
    """A C-contiguous array in the GPU's memory.

    shape, dtype    as in NumPy
    memory          the numba.cuda array of one axis that kernels index
    owner, start    what keeps the memory, and where in it the array begins
    """

    __slots__ = ("shape", "dtype", "memory", "owner", "start")

    def __init__(self, shape: tuple, dtype: np.dtype, memory: Any, owner: Any, start: int = 0):
        self.shape = shape
        self.dtype = dtype
        self.memory = memory
        self.owner = owner
        self.start = start

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def buffer(self) -> Any:
        """The whole memory that this array is cut from, as a kernel takes it."""
        return self.owner.memory if isinstance(self.owner, _Buffer) else self.memory

    def __deepcopy__(self, memo: dict) -> "Array":
        """A copy, beside the copies of the arrays that it shares a buffer with."""
        if id(self.owner) not in memo:
            copied = to_device(self.buffer.copy_to_host())
            memo[id(self.owner)] = copied.owner
        owner = memo[id(self.owner)]
        memory = owner.memory
        if memory.size != self.size:
            memory = memory[self.start : self.start + self.size]
        return Array(self.shape, self.dtype, memory, owner, self.start)

    def __reduce__(self) -> tuple:
        """Pickled as a copy on the host, and unpickled to the GPU."""
        return to_device, (to_host(self),)

    def __array__(
        self, dtype: np.typing.DTypeLike | None = None, copy: bool | None = None
    ) -> np.ndarray:
        """A NumPy copy, for numpy.array; raises ValueError where none may be made."""
        if copy is False:
            raise ValueError("an array on the GPU cannot be seen by NumPy without a copy")
        return to_host(self).astype(dtype or self.dtype, copy=False)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """The memory itself, for PyTorch, CuPy and others: they see what later kernels write."""
        interface = dict(self.memory.__cuda_array_interface__)
        return interface | {"shape": self.shape, "strides": None, "stream": LEGACY_STREAM}

    def __len__(self) -> int:
        return self.shape[0]

    def __float__(self) -> float:
        """The value of an array of one element; waits for the GPU."""
        return float(to_host(self).reshape(()))

    def __int__(self) -> int:
        return int(float(self))

    def __repr__(self) -> str:
        return f"Array({self.shape}, {self.dtype}, on the GPU)"

    def reshape(self, *shape: int) -> "Array":
        """The same memory in another shape; one length may be -1."""
        if len(shape) == 1 and isinstance(shape[0], tuple):
            (shape,) = shape
        if -1 in shape:
            rest = math.prod(length for length in shape if length != -1)
            missing = self.size // rest if rest else 0
            shape = tuple(missing if length == -1 else length for length in shape)
        if math.prod(shape) != self.size:
            raise ValueError(f"cannot reshape {self.shape} into {shape}")
        return Array(shape, self.dtype, self.memory, self.owner, self.start)

    def astype(self, dtype: np.typing.DTypeLike) -> "Array":
        """A copy of another dtype, converted on the host: for setting up, not for steps."""
        return to_device(to_host(self).astype(dtype))


def empty(shape: int | tuple[int, ...], dtype: np.typing.DTypeLike) -> Array:
    """An array of undefined contents."""
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    dtype = np.dtype(dtype)
    buffer = _Buffer((dtype, max(_checked_size(shape), 1)))
    return Array(shape, dtype, buffer.memory, buffer)


def to_device(array: Any) -> Array:
    """An array on the GPU: what is there already is taken as it is, a NumPy array is copied there.

    Arrays of PyTorch, CuPy and Numba on the GPU come in without a copy, through
    `__cuda_array_interface__`; they must be on the GPU that this process uses. A stream that they
    name is waited for, unless it is the default one, on which our kernels follow.

    raises ValueError where such an array is not C-contiguous or aligned, or too large
    """
    if isinstance(array, Array):
        return array
    if hasattr(array, "__cuda_array_interface__"):
        return _borrowed(array)
    array = np.ascontiguousarray(array)
    with from_pool(None):
        on_device = empty(array.shape, array.dtype)
    if _thread.pool is not None:
        _thread.pool.uploaded.append(on_device)
    if array.size:
        _upload(array.reshape(-1), on_device.memory)
    return on_device


def _upload(array: np.ndarray, memory: Any) -> None:
    """Copy the array into memory on the GPU; returns when the array may be written again."""
    if SIMULATED or array.nbytes > STAGE_BYTES:
        memory.copy_to_device(array)
        return
    enter_context()
    with _staging:
        if not _stages:
            stream = cuda.legacy_default_stream()
            _stages.extend(
                (cuda.pinned_array(STAGE_BYTES, np.uint8), cuda.event(timing=False), stream)
                for _ in range(STAGES)
            )
        pinned, copied, stream = _stages.pop(0)
        copied.synchronize()
        staged = pinned[: array.nbytes].view(array.dtype)
        staged[:] = array
        cuda.cudadrv.driver.host_to_device(memory, staged, array.nbytes, stream)
        copied.record(stream)
        _stages.append((pinned, copied, stream))


def _checked_size(shape: tuple[int, ...]) -> int:
    size = math.prod(shape)
    if size > LARGEST:
        raise ValueError(f"arrays on the GPU hold at most {LARGEST} elements, got shape {shape}")
    return size


def _borrowed(array: Any) -> Array:
    stream = array.__cuda_array_interface__.get("stream")
    view = cuda.as_cuda_array(array, sync=stream != LEGACY_STREAM)
    size = _checked_size(tuple(view.shape))
    if not view.is_c_contiguous():
        raise ValueError(
            f"arrays on the GPU must be C-contiguous, got shape {tuple(view.shape)} with strides "
            f"{tuple(view.strides)}"
        )
    if array.__cuda_array_interface__["data"][0] % ALIGNMENT:
        raise ValueError(
            f"arrays on the GPU must start at a multiple of {ALIGNMENT} bytes: copy it"
        )
    return Array(tuple(view.shape), np.dtype(view.dtype), view.reshape(size), array)


def on_device(*arguments: Any) -> Any:
    """Each argument as an `Array`, where it is an array of any kind; anything else as it is."""
    found = [to_device(a) if _is_plain(a) else borrowed(a) for a in arguments]
    return found if len(found) > 1 else found[0]


def _is_plain(argument: Any) -> bool:
    """Whether it is an array of NumPy; one with a mask is left to the checks, which refuse it."""
    return isinstance(argument, np.ndarray) and not isinstance(argument, NOT_PLAIN)


def borrowed(argument: Any) -> Any:
    """Another library's array on the GPU as an `Array`; anything else, NumPy's too, as it is."""
    if argument is None or isinstance(argument, Array):
        return argument
    return to_device(argument) if hasattr(argument, "__cuda_array_interface__") else argument


def to_host(array: Any) -> Any:
    """A NumPy copy of an array on the GPU, after every kernel before; others as they are.

    raises RuntimeError in a step that is being recorded, as it has not run
    """
    if not isinstance(array, Array):
        return array
    if _thread.pool is not None:
        raise RuntimeError("a step that is being recorded has not run: it has no values to read")
    if not array.size:
        return np.empty(array.shape, array.dtype)
    return _download(array.memory).reshape(array.shape)


def _download(memory: Any) -> np.ndarray:
    """Copy memory on the GPU, after every kernel before."""
    if SIMULATED:
        return memory.copy_to_host()
    enter_context()
    host = np.empty(memory.size, memory.dtype)
    cuda.cudadrv.driver.device_to_host(host, memory, host.nbytes)
    return host


def pack(arrays: Sequence[np.ndarray | Array]) -> list[Array]:
    """Copies of the arrays, side by side in one buffer for each dtype.

    A kernel can then walk over all of them. Each starts at a multiple of four elements, as load4
    asks.
    """
    arrays = [np.ascontiguousarray(to_host(array)) for array in arrays]
    packed: list[Array | None] = [None] * len(arrays)
    for dtype in {array.dtype for array in arrays}:
        alike = [i for i, array in enumerate(arrays) if array.dtype == dtype]
        lengths = (-(-arrays[i].size // 4) * 4 for i in alike)
        *starts, end = itertools.accumulate(lengths, initial=0)
        joined = np.zeros(end, dtype)
        for i, start in zip(alike, starts, strict=True):
            joined[start : start + arrays[i].size] = arrays[i].reshape(-1)
        whole = to_device(joined)
        for i, start in zip(alike, starts, strict=True):
            memory = whole.memory[start : start + arrays[i].size]
            packed[i] = Array(arrays[i].shape, dtype, memory, whole.owner, start)
    return packed


def zeros_like(arrays: Sequence[Array]) -> list[Array]:
    """Arrays of zeros, packed."""
    return pack([np.zeros(array.shape, array.dtype) for array in arrays])


def copy_into(array: Array, source: np.ndarray) -> None:
    """Overwrite the array with a NumPy array of its shape."""
    source = np.ascontiguousarray(source, array.dtype)
    if source.shape != array.shape:
        raise ValueError(f"cannot copy shape {source.shape} into {array.shape}")
    if array.size:
        _upload(source.reshape(-1), array.memory)


def synchronize() -> None:
    """Wait until the GPU has done all that was asked of it."""
    if not SIMULATED:
        cuda.synchronize()
