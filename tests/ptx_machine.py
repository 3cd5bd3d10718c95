"""A GPU made of NumPy: it runs the PTX of a kernel and watches what the threads do to memory.

The simulator runs a kernel's Python, with small tiles. Here runs what a GPU would get: the code
that the compiler made of it, its types, its vectors and its address spaces, in blocks of full size.
A register is an array with an element for each thread, so that one instruction is one call of
NumPy for all threads that have come to it. Those that lag behind go first, until they meet again.

What compute-sanitizer finds on a GPU raises Fault here, with the instruction and the thread:

    memcheck    an access outside of every array, or one not aligned to its size
    initcheck   a value read, or copied to the host, that nobody wrote
    racecheck   two threads at one address, one of them writing, and no barrier between them; in
                global memory a barrier does not help, as other blocks do not wait at it
    synccheck   threads of one block that wait at different barriers

It knows the instructions that our kernels compile to. Arithmetic is IEEE's, as theirs is; exp2,
log2 and the reciprocal root, which PTX only approximates, are exact, and so is the rounding of fma
but for the last bit of a float64.
"""

import ctypes
import re
import struct
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

TYPES = {
    f"{kind}{bits}": np.dtype(f"{name}{bits}")
    for kind, name in (("b", "uint"), ("u", "uint"), ("s", "int"), ("f", "float"))
    for bits in (8, 16, 32, 64)
    if (kind, bits) != ("f", 8)
} | {"pred": np.dtype(bool)}
AT_ONCE = 2**14  # threads that run side by side; more take turns, block by block
MANY = 2**32 - 1  # stands for several readers
GAP = 256  # bytes between arrays, which belong to nobody
BASES = {"local": 2**20, "shared": 2**30, "global": 2**40}  # where each space's addresses begin
FINISHED = 2**30  # where a thread goes that has nothing to do


class Fault(Exception):
    """A kernel did what it must not."""


# Memory


class Space:
    """Memory of `owners` (blocks, threads, or the GPU) with `size` bytes each.

    written           whether the element that starts at a byte has a value
    writer, reader    who touched it last: a time in the upper half, a thread in the lower
    """

    def __init__(self, name: str, size: int, owners: int):
        self.name, self.size, self.base = name, size, BASES[name]
        self.data = np.zeros(-(-owners * size // 8) * 8, np.uint8)
        self.allocated = np.full(owners * size, name != "global")
        self.written = np.zeros(owners * size, bool)
        self.writer = np.zeros(owners * size, np.int64)
        self.reader = np.zeros(owners * size, np.int64)

    def places(self, address: np.ndarray, dtype: np.dtype, lanes: int, owner: Any) -> np.ndarray:
        """Where the elements at these addresses lie in `data`: (threads, lanes)."""
        offset = address.view(np.int64) - self.base
        _refuse(offset % (lanes * dtype.itemsize) != 0, "an address is not aligned")
        _refuse((offset < 0) | (offset + lanes * dtype.itemsize > self.size), "out of bounds")
        places = (offset + owner * self.size)[:, None] + np.arange(lanes) * dtype.itemsize
        _refuse(~self.allocated[places].all(axis=1), "out of bounds")
        return places

    def load(self, places: np.ndarray, dtype: np.dtype, now: int, thread: np.ndarray) -> np.ndarray:
        _refuse(~self.written[places].all(axis=1), "a value that nobody wrote")
        me = (now << 32 | thread)[:, None]
        _refuse(_is_other(self.writer[places], me).any(axis=1), "a race with a write")
        alone = ~_is_other(self.reader[places], me)
        self.reader[places] = np.where(alone, me, me | MANY)
        crowded = self.reader[places] != me  # of several at one place, the last one stands there
        self.reader[places[crowded]] |= MANY
        return self.data.view(dtype)[places // dtype.itemsize]

    def store(self, places: np.ndarray, values: np.ndarray, now: int, thread: np.ndarray) -> None:
        me = np.broadcast_to((now << 32 | thread)[:, None], places.shape)
        _refuse(_is_other(self.writer[places], me).any(axis=1), "a race of two writes")
        _refuse(_is_other(self.reader[places], me).any(axis=1), "a race with a read")
        self.writer[places] = me
        _refuse((self.writer[places] != me).any(axis=1), "a race of two writes")
        self.written[places] = True
        self.data.view(values.dtype)[places // values.dtype.itemsize] = values


def _is_other(stamp: np.ndarray, me: np.ndarray) -> np.ndarray:
    """Whether somebody else left the stamp since the last barrier."""
    return (stamp >> 32 == me >> 32) & (stamp != me)


class _Refused(Exception):
    def __init__(self, what: str, thread: int):
        super().__init__(what)
        self.what, self.thread = what, thread


def _refuse(which: np.ndarray, what: str) -> None:
    if which.any():
        raise _Refused(what, int(np.argmax(which)))


class Memory:
    """An array on the machine, as `backends/cuda/arrays.py` asks for it."""

    def __init__(self, gpu: "Machine", size: int, dtype: np.dtype, start: int | None = None):
        self.gpu, self.size, self.dtype = gpu, size, np.dtype(dtype)
        self.owned = start is None
        self.start = gpu.allocate(self.nbytes) if start is None else start

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def device_ctypes_pointer(self) -> ctypes.c_uint64:
        return ctypes.c_uint64(BASES["global"] + self.start)

    def __del__(self):
        if self.owned:
            self.gpu.release(self.start, self.nbytes)

    def __getitem__(self, part: slice) -> "Memory":
        start, stop, _ = part.indices(self.size)
        view = Memory(self.gpu, stop - start, self.dtype, self.start + start * self.dtype.itemsize)
        view.whole = self
        return view

    def copy_to_device(self, array: np.ndarray) -> None:
        assert array.shape == (self.size,)
        space, stop = self.gpu.memory, self.start + self.nbytes
        space.data[self.start : stop] = array.astype(self.dtype).view(np.uint8)
        space.written[self.start : stop] = True

    def copy_to_host(self) -> np.ndarray:
        space, stop = self.gpu.memory, self.start + self.nbytes
        if not space.written[self.start : stop : self.dtype.itemsize].all():
            raise Fault("initcheck: values are copied to the host that nobody wrote")
        return space.data[self.start : stop].view(self.dtype).copy()


class Machine:
    """Global memory, and the launches that use it."""

    def __init__(self, size: int = 2**27):
        self.memory = Space("global", size, 1)
        self.free: dict[int, list[int]] = defaultdict(list)
        self.end = 0
        self.launches = 0

    def allocate(self, nbytes: int) -> int:
        length = self._length(nbytes)
        if self.free[length]:
            start = self.free[length].pop()
        else:
            start, self.end = self.end, self.end + length
            assert self.end <= self.memory.size, "the machine's memory is used up"
        self.memory.allocated[start : start + nbytes] = True
        return start

    def release(self, start: int, nbytes: int) -> None:
        self.memory.allocated[start : start + nbytes] = False
        self.memory.written[start : start + nbytes] = False
        self.free[self._length(nbytes)].append(start)

    @staticmethod
    def _length(nbytes: int) -> int:
        return -(-nbytes // GAP) * GAP + GAP

    def launch(
        self,
        program: "Program",
        blocks: int | tuple[int, ...],
        threads: int | tuple[int, ...],
        parameters: Sequence[Any],
    ) -> None:
        """Run every block; parameters are the numbers that a driver hands to the kernel."""
        self.launches += 1
        blocks, threads = (
            (*(sizes if isinstance(sizes, tuple) else (sizes,)), 1, 1)[:3]
            for sizes in (blocks, threads)
        )
        _check_limits(program, blocks, threads)
        everyone = range(int(np.prod(blocks)))
        together = max(1, AT_ONCE // int(np.prod(threads)))
        for first in everyone[::together]:
            some = np.arange(first, min(first + together, len(everyone)))
            _Run(self, program, blocks, threads, some, parameters).run()


def _check_limits(program: "Program", blocks: tuple, threads: tuple) -> None:
    """What a GPU launches: CUDA programming guide, technical specifications by capability."""
    most_blocks, most_threads = (2**31 - 1, 65535, 65535), (1024, 1024, 64)
    if (
        any(size > most for size, most in zip(blocks, most_blocks, strict=True))
        or any(size > most for size, most in zip(threads, most_threads, strict=True))
        or np.prod(threads) > 1024
        or program.shared_size > 48 * 1024
    ):
        raise Fault(
            f"no GPU launches {blocks} blocks of {threads} threads with {program.shared_size} bytes"
        )


# Programs


class Program:
    """The PTX of one kernel, taken apart into blocks that are entered at the top only.

    blocks      for each, its instructions; the last may be a jump, a barrier or an exit
    registers   name and dtype of each
    shared      the address of each name in shared memory, and how many bytes there are
    local       bytes of local memory
    """

    def __init__(self, ptx: str):
        _, body = ptx.split(".visible .entry", 1)
        self.symbols: dict[str, int] = {}
        self.shared_size = self._place(ptx, "shared")
        self.local_size = self._place(body, "local")
        self.registers: dict[str, np.dtype] = {}
        for kind, name, count in re.findall(r"\.reg \.(\w+)\s+(%\w+)(?:<(\d+)>)?;", body):
            names = [f"{name}{i}" for i in range(int(count))] if count else [name]
            self.registers |= dict.fromkeys(names, TYPES[kind])
        self.labels: dict[str, int] = {}
        self.blocks: list[list[Instruction]] = [[]]
        code = re.sub(r"//.*|\.(?:reg|local|shared|pragma) [^;]*;", "", body[body.index("{") + 1 :])
        for label, text in re.findall(r"(\$\w+):|([@\w][^;]*);", code):
            if self.blocks[-1] and (label or self.blocks[-1][-1].ends_block):
                self.blocks.append([])
            if label:
                self.labels[label] = len(self.blocks) - 1
            else:
                self.blocks[-1].append(Instruction(" ".join(text.split())))

    def _place(self, text: str, space: str) -> int:
        """Give each array of a space its address; returns the bytes they take."""
        end = 0
        for alignment, name, count in re.findall(
            rf"\.{space} \.align (\d+) \.b8\s+(\w+)\[(\d+)\]", text
        ):
            start = -(-end // int(alignment)) * int(alignment)
            self.symbols[name] = BASES[space] + start
            end = start + int(count)
        return end


class Instruction:
    """One line: `@guard opcode.modifiers.type operands`."""

    def __init__(self, text: str):
        self.text = text
        guard, opcode, rest = re.fullmatch(r"(?:@(!?%\w+) )?([\w.]+) ?(.*)", text).groups()
        self.guard = guard and guard.lstrip("!")
        self.guard_sign = not (guard or "").startswith("!")
        self.name, *self.modifiers = opcode.split(".")
        kinds = [kind for kind in self.modifiers if kind in TYPES]
        self.dtype = TYPES[kinds[-1]] if kinds else None  # of the operands; of cvt's source
        self.target_dtype = TYPES[kinds[0]] if kinds else None
        self.lanes = next((int(m[1]) for m in self.modifiers if m in ("v2", "v4")), 1)
        self.ends_block = self.name in ("bra", "ret", "bar")
        self.operands = [
            re.findall(r"[^\s,{}]+", one) for one in re.findall(r"\{[^}]*\}|[^\s,]+", rest)
        ]
        place = re.search(r"\[(.*?)(?:\+(-?\d+))?\]", rest)
        if place:  # of ld and st
            self.base, self.offset = place.group(1), int(place.group(2) or 0) % 2**64
        if self.name in ("ld", "st", "cp", "bra", "ret", "bar", "mov", "setp"):
            self.execute = getattr(_Run, self.name)
        elif self.name in ARITHMETIC:
            self.operation = ARITHMETIC[self.name]
            self.execute = _Run.compute
        else:
            raise NotImplementedError(f"an instruction that the machine does not know: {text}")


class _Run:
    """Some blocks of a launch, from their first instruction to their last."""

    def __init__(self, gpu, program, blocks, threads, some, parameters):
        self.gpu, self.program, self.parameters = gpu, program, parameters
        in_block = self.in_block = int(np.prod(threads))
        self.count = in_block * len(some)
        self.block = np.repeat(np.arange(len(some)), in_block)  # of this run
        self.number = np.tile(np.arange(in_block), len(some))  # of a thread in its block
        global_block = some[self.block]
        self.thread = global_block * in_block + self.number  # of the launch
        self.special = {
            "%tid": _coordinates(self.number, threads),
            "%ctaid": _coordinates(global_block, blocks),
            "%ntid": threads,
            "%nctaid": blocks,
        }
        self.registers = {
            name: np.zeros(self.count, dtype) for name, dtype in program.registers.items()
        }
        self.spaces = {
            "global": (gpu.memory, np.zeros(self.count, np.int64)),
            "shared": (Space("shared", program.shared_size, len(some)), self.block),
            "local": (Space("local", program.local_size, self.count), np.arange(self.count)),
        }
        self.next = np.zeros(self.count, np.int64)  # block of the program each thread enters next
        self.after_barrier = np.full(self.count, FINISHED)
        self.barriers = 1
        self.rounds = np.zeros(self.count, np.int64)  # of copies that each thread has begun
        # that nobody waited for yet: threads, their rounds, places, values
        self.copies: list[tuple[np.ndarray, ...]] = []

    def run(self) -> None:
        while True:
            place = self.next.min()
            if place == FINISHED:
                if (self.after_barrier == FINISHED).all():
                    return
                self.release()
                continue
            here = np.nonzero(self.next == place)[0]
            self.here = slice(None) if len(here) == self.count else here
            self.next[self.here] = place + 1
            for instruction in self.program.blocks[place]:
                self.step(instruction)

    def step(self, instruction: Instruction) -> None:
        everyone = self.here
        if instruction.guard:
            open_ = self.registers[instruction.guard][everyone] == instruction.guard_sign
            self.here = np.arange(self.count)[everyone][open_]
            if not len(self.here):
                self.here = everyone
                return
        try:
            with np.errstate(all="ignore"):
                instruction.execute(self, instruction)
        except _Refused as refused:
            t = np.arange(self.count)[self.here][refused.thread]
            raise Fault(
                f"{refused.what}: thread {self.number[t]} of block "
                f"{self.thread[t] // self.in_block}, at `{instruction.text}`"
            ) from None
        self.here = everyone

    def release(self) -> None:
        """Everybody waits: let the threads of each block pass its barrier."""
        waits = self.after_barrier != FINISHED
        first = np.full(self.block.max() + 1, -1)
        first[self.block[waits]] = self.after_barrier[waits]
        if (self.after_barrier != first[self.block])[first[self.block] >= 0].any():
            raise Fault("synccheck: threads of a block do not wait at the same barrier")
        self.next, self.after_barrier = self.after_barrier, np.full(self.count, FINISHED)
        self.barriers += 1

    # Operands

    def value(self, operand: str, dtype: np.dtype) -> Any:
        """What the threads that are here find in an operand."""
        if operand in self.registers:
            register = self.registers[operand][self.here]
            if register.dtype.itemsize == dtype.itemsize:
                return register.view(dtype)
            return register.astype(f"u{dtype.itemsize}").view(dtype)
        if operand.startswith("%"):
            name, axis = operand.split(".")
            value = self.special[name]["xyz".index(axis)]
            return (value[self.here] if isinstance(value, np.ndarray) else np.int64(value)).astype(
                dtype
            )
        if operand in self.program.symbols:
            return np.array([self.program.symbols[operand]]).astype(dtype)
        return _immediate(operand, dtype)

    def write(self, operand: str, values: np.ndarray) -> None:
        register = self.registers[operand]
        if register.dtype.itemsize != values.dtype.itemsize:
            kind = "i" if values.dtype.kind == "i" else "u"
            values = values.astype(f"{kind}{register.dtype.itemsize}")
        register[self.here] = values.view(register.dtype)

    def address(self, instruction: Instruction) -> np.ndarray:
        base = self.value(instruction.base, TYPES["u64"])
        return np.broadcast_to(base, self._shape()) + np.uint64(instruction.offset)

    # Instructions

    def compute(self, instruction: Instruction) -> None:
        (target,), *sources = instruction.operands
        self.write(target, instruction.operation(self, instruction, *(s for (s,) in sources)))

    def ld(self, instruction: Instruction) -> None:
        targets = instruction.operands[0]
        dtype = instruction.dtype
        if "param" in instruction.modifiers:
            number = int(re.search(r"_param_(\d+)$", instruction.base).group(1))
            value = np.array([self.parameters[number]])
            self.write(targets[0], value.astype(dtype))
            return
        address = self.address(instruction)
        loaded = np.empty((len(address), len(targets)), dtype)
        for space, owner, some in self.spaces_of(instruction, address):
            places = space.places(address[some], dtype, len(targets), owner[some])
            loaded[some] = space.load(places, dtype, self.now(space), self.thread[self.here][some])
        for lane, target in enumerate(targets):
            self.write(target, np.ascontiguousarray(loaded[:, lane]))

    def st(self, instruction: Instruction) -> None:
        sources = instruction.operands[1]
        dtype = instruction.dtype
        address = self.address(instruction)
        values = np.empty((len(address), len(sources)), dtype)
        for lane, source in enumerate(sources):
            values[:, lane] = self.value(source, dtype)
        for space, owner, some in self.spaces_of(instruction, address):
            places = space.places(address[some], dtype, len(sources), owner[some])
            space.store(places, values[some], self.now(space), self.thread[self.here][some])

    def cp(self, instruction: Instruction) -> None:
        """A copy from global to shared memory on its own: it is there when its thread has waited
        for its round.

        What is to be copied is read at once, which is what racecheck of global memory asks for.
        """
        here = np.arange(self.count)[self.here]
        shared, block = self.spaces["shared"]
        if "commit_group" in instruction.modifiers:
            self.rounds[here] += 1
            return
        if "wait_group" in instruction.modifiers:
            ((later,),) = instruction.operands
            waited, self.copies = self.copies, []
            for threads, rounds, places, values in waited:
                done = np.isin(threads, here) & (rounds < self.rounds[threads] - int(later))
                if done.any():
                    mine = self.thread[threads[done]]
                    shared.store(places[done], values[done], self.now(shared), mine)
                if not done.all():
                    self.copies.append(
                        tuple(part[~done] for part in (threads, rounds, places, values))
                    )
            return
        (to,), (of,), (nbytes,), (size,) = instruction.operands
        dtype, lanes = (TYPES["u64"], 1) if nbytes == "8" else (TYPES["u32"], int(nbytes) // 4)
        to, of = (
            np.broadcast_to(self.value(place.strip("[]"), TYPES["u64"]), self._shape())
            for place in (to, of)
        )
        read = np.broadcast_to(self.value(size, TYPES["u32"]), self._shape()) > 0
        values = np.zeros((len(here), lanes), dtype)
        memory, owner = self.spaces["global"]
        if read.any():
            places = memory.places(of[read], dtype, lanes, owner[here][read])
            values[read] = memory.load(places, dtype, self.now(memory), self.thread[here][read])
        places = shared.places(to, dtype, lanes, block[here])
        self.copies.append((here, self.rounds[here], places, values))

    def spaces_of(self, instruction: Instruction, address: np.ndarray) -> Any:
        """The spaces that an access goes to, with their owners, and the threads that go there."""
        named = [name for name in BASES if name in instruction.modifiers]
        for name in named or BASES:
            space, owner = self.spaces[name]
            offset = address.view(np.int64) - space.base
            some = (offset >= 0) & (offset < 2**29) if not named else np.full(len(address), True)
            if some.any():
                yield space, owner[self.here], some

    def now(self, space: Space) -> int:
        return self.gpu.launches if space.name == "global" else self.barriers

    def mov(self, instruction: Instruction) -> None:
        """Also takes one register apart into two, or puts two together."""
        targets, sources = instruction.operands
        if len(targets) == len(sources) == 1:
            value = self.value(sources[0], instruction.dtype)
            self.write(targets[0], np.ascontiguousarray(np.broadcast_to(value, self._shape())))
            return
        half = np.dtype(f"u{instruction.dtype.itemsize // 2}")
        if len(sources) == 2:
            halves = np.stack(
                [np.broadcast_to(self.value(s, half), self._shape()) for s in sources], axis=-1
            )
            self.write(targets[0], np.ascontiguousarray(halves).view(instruction.dtype)[:, 0])
        else:
            whole = np.broadcast_to(self.value(sources[0], instruction.dtype), self._shape())
            halves = np.ascontiguousarray(whole).view(half).reshape(-1, 2)
            for lane, target in enumerate(targets):
                self.write(target, np.ascontiguousarray(halves[:, lane]))

    def _shape(self) -> tuple[int]:
        return (len(self.thread[self.here]),)

    def setp(self, instruction: Instruction) -> None:
        (target,), (left,), (right,), *more = instruction.operands
        a, b = self.value(left, instruction.dtype), self.value(right, instruction.dtype)
        truth = COMPARISONS[instruction.modifiers[0]](a, b)
        if more:
            combine = getattr(np, f"logical_{instruction.modifiers[1]}")
            truth = combine(truth, self.value(more[0][0], TYPES["pred"]))
        self.write(target, np.ascontiguousarray(truth))

    def bra(self, instruction: Instruction) -> None:
        self.next[self.here] = self.program.labels[instruction.operands[0][0]]

    def ret(self, instruction: Instruction) -> None:
        self.next[self.here] = FINISHED

    def bar(self, instruction: Instruction) -> None:
        self.after_barrier[self.here] = self.next[self.here]
        self.next[self.here] = FINISHED


def _coordinates(number: np.ndarray, sizes: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    return number % sizes[0], number // sizes[0] % sizes[1], number // (sizes[0] * sizes[1])


def _immediate(text: str, dtype: np.dtype) -> np.ndarray:
    if text.startswith(("0f", "0F")):
        return np.array([struct.unpack(">f", bytes.fromhex(text[2:]))[0]], np.float32).view(dtype)
    if text.startswith(("0d", "0D")):
        return np.array([struct.unpack(">d", bytes.fromhex(text[2:]))[0]], np.float64).view(dtype)
    if dtype == TYPES["pred"]:
        return np.array([int(text, 0) != 0])
    bits = 8 * dtype.itemsize
    return np.array([int(text, 0) & (2**bits - 1)], f"u{dtype.itemsize}").view(dtype)


# Arithmetic: each takes the run, the instruction and its operands' names


def _plain(function: Callable) -> Callable:
    """All operands are of the instruction's type, and so is the result."""

    def operation(run: _Run, instruction: Instruction, *operands: str) -> np.ndarray:
        dtype = instruction.dtype
        values = [run.value(operand, dtype) for operand in operands]
        return np.asarray(function(*values)).astype(dtype, copy=False)

    return operation


def _mul(run: _Run, instruction: Instruction, left: str, right: str) -> np.ndarray:
    dtype = instruction.dtype
    a, b = run.value(left, dtype), run.value(right, dtype)
    if "wide" in instruction.modifiers:
        wide = np.dtype(f"{dtype.kind}{2 * dtype.itemsize}")
        return a.astype(wide) * b.astype(wide)
    if "hi" not in instruction.modifiers:
        return a * b
    if dtype.itemsize == 4:
        wide = np.dtype(f"{dtype.kind}8")
        return ((a.astype(wide) * b.astype(wide)) >> 32).astype(dtype)
    return _high_half(*np.broadcast_arrays(a, b))


def _high_half(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The upper 64 bits of a product of 64-bit integers, from its four partial products."""
    low, half = np.uint64(2**32 - 1), np.uint64(32)
    x, y = a.view(np.uint64), b.view(np.uint64)
    cross = (x >> half) * (y & low) + ((x & low) * (y & low) >> half)
    other = (x & low) * (y >> half) + (cross & low)
    high = ((x >> half) * (y >> half) + (cross >> half) + (other >> half)).view(a.dtype)
    if a.dtype.kind == "i":
        high = high - np.where(a < 0, b, 0) - np.where(b < 0, a, 0)
    return high


def _mad(run: _Run, instruction: Instruction, left: str, right: str, more: str) -> np.ndarray:
    product = _mul(run, instruction, left, right)
    return product + run.value(more, product.dtype)


def _fma(run: _Run, instruction: Instruction, *operands: str) -> np.ndarray:
    """In float64, where a product of float32s is exact; .rm rounds down."""
    a, b, c = (run.value(operand, instruction.dtype).astype(np.float64) for operand in operands)
    exact = a * b + c
    rounded = exact.astype(instruction.dtype)
    if "rm" in instruction.modifiers:
        down = np.nextafter(rounded, instruction.dtype.type(-np.inf))
        rounded = np.where(rounded > exact, down, rounded)
    return rounded


def _div(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Towards zero, for integers."""
    if a.dtype.kind == "f":
        return a / b
    quotient = a // b
    return quotient + ((quotient < 0) & (quotient * b != a)) if a.dtype.kind == "i" else quotient


def _shift(function: Callable) -> Callable:
    """By a 32-bit amount; a shift by the width or more leaves nothing but signs."""

    def operation(run: _Run, instruction: Instruction, left: str, right: str) -> np.ndarray:
        dtype = instruction.dtype
        value, amount = run.value(left, dtype), run.value(right, TYPES["u32"])
        bits = 8 * dtype.itemsize
        shifted = function(value, np.minimum(amount, bits - 1).astype(dtype))
        if function is np.right_shift and dtype.kind == "i":
            return shifted
        return np.where(amount < bits, shifted, dtype.type(0))

    return operation


def _selp(run: _Run, instruction: Instruction, yes: str, no: str, which: str) -> np.ndarray:
    dtype = instruction.dtype
    return np.where(
        run.value(which, TYPES["pred"]), run.value(yes, dtype), run.value(no, dtype)
    ).astype(dtype)


def _cvt(run: _Run, instruction: Instruction, source: str) -> np.ndarray:
    value, target = run.value(source, instruction.dtype), instruction.target_dtype
    if value.dtype.kind == "f":
        rounding = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
        for modifier in instruction.modifiers:
            value = rounding.get(modifier, lambda same: same)(value)
        if "sat" in instruction.modifiers:
            value = np.clip(np.nan_to_num(value, nan=0.0), 0, 1)
        if target.kind != "f":  # out of range goes to the nearest, and not a number to 0
            limits = np.iinfo(target)
            value = np.clip(np.nan_to_num(value, nan=0.0), limits.min, limits.max)
    return value.astype(target)


def _bfi(
    run: _Run, instruction: Instruction, source: str, into: str, position: str, length: str
) -> np.ndarray:
    """The lowest bits of the source, in place of those of `into` that begin at a position."""
    dtype, width = instruction.dtype, 8 * instruction.dtype.itemsize
    first, count = int(position), int(length)
    mask = dtype.type((2**count - 1 << first) & (2**width - 1))
    shifted = run.value(source, dtype) << dtype.type(first)
    return (run.value(into, dtype) & ~mask) | (shifted & mask)


def _prmt(run: _Run, instruction: Instruction, left: str, right: str, selector: str) -> np.ndarray:
    """Four of the eight bytes of two registers, by the four lowest digits of the selector."""
    both = [np.atleast_1d(run.value(operand, TYPES["u32"])) for operand in (left, right)]
    low, high = np.broadcast_arrays(*both)
    result = np.zeros(low.shape, np.uint32)
    for i in range(4):
        digit = int(selector, 0) >> 4 * i & 15
        byte = (high if digit & 4 else low) >> np.uint32(8 * (digit & 3)) & np.uint32(255)
        if digit & 8:  # its sign instead
            byte = np.where(byte > 127, np.uint32(255), np.uint32(0))
        result |= byte << np.uint32(8 * i)
    return result


def _dp2a(run: _Run, instruction: Instruction, left: str, right: str, more: str) -> np.ndarray:
    """The product of the left's halves and two bytes of the right, the lower or the higher ones."""
    halves, pairs, sums = (run.value(operand, TYPES["u32"]) for operand in (left, right, more))
    first = pairs >> np.uint32(16 if "hi" in instruction.modifiers else 0)
    low, high = first & np.uint32(255), first >> np.uint32(8) & np.uint32(255)
    return sums + (halves & np.uint32(0xFFFF)) * low + (halves >> np.uint32(16)) * high


def _dp4a(run: _Run, instruction: Instruction, left: str, right: str, more: str) -> np.ndarray:
    """The product of four bytes and four others."""
    one, other, sums = (run.value(operand, TYPES["u32"]) for operand in (left, right, more))
    for shift in (np.uint32(8 * i) for i in range(4)):
        sums = sums + (one >> shift & np.uint32(255)) * (other >> shift & np.uint32(255))
    return sums


def _not(value: np.ndarray) -> np.ndarray:
    return np.logical_not(value) if value.dtype == bool else np.bitwise_not(value)


ARITHMETIC = {
    "mul": _mul,
    "mad": _mad,
    "fma": _fma,
    "shl": _shift(np.left_shift),
    "shr": _shift(np.right_shift),
    "selp": _selp,
    "bfi": _bfi,
    "prmt": _prmt,
    "dp2a": _dp2a,
    "dp4a": _dp4a,
    "cvt": _cvt,
    "cvta": _plain(lambda address: address),  # every space has addresses of its own
} | {
    name: _plain(function)
    for name, function in {
        "add": np.add,
        "sub": np.subtract,
        "div": _div,
        "rem": np.fmod,
        "neg": np.negative,
        "abs": np.abs,
        "min": np.fmin,
        "max": np.fmax,
        "and": np.bitwise_and,
        "or": np.bitwise_or,
        "xor": np.bitwise_xor,
        "not": _not,
        "sqrt": np.sqrt,
        "rcp": lambda value: 1 / value,
        "rsqrt": lambda value: 1 / np.sqrt(value),
        "ex2": np.exp2,
        "lg2": np.log2,
    }.items()
}


def _or_unordered(compare: Callable) -> Callable:
    return lambda a, b: compare(a, b) | np.isnan(a) | np.isnan(b)


COMPARISONS = {
    "eq": np.equal,
    "ne": lambda a, b: (a != b) & np.logical_not(_is_nan(a) | _is_nan(b)),
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "nan": lambda a, b: np.isnan(a) | np.isnan(b),
    "num": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
}
COMPARISONS |= {
    f"{name}u": _or_unordered(COMPARISONS[name]) for name in ("eq", "ne", "lt", "le", "gt", "ge")
}


def _is_nan(value: np.ndarray) -> Any:
    return np.isnan(value) if value.dtype.kind == "f" else False
