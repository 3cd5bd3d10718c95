"""Compiled kernels on disk, so that the next process starts at once.

A kernel takes Numba most of a second, and a network has twenty. Numba's own cache passes by
kernels that close over other functions, which ours do: they are made for their sizes. Here a file
is named by a digest of all that a kernel's code follows from: where its function is written, the
values that it closes over, the same of every function among them, and the types of its arguments.
A folder belongs to one state of our sources and of the compiler; another one takes its place.

The folder lies beside this file, or under NUMBA_CACHE_DIR. What cannot be read or written there is
compiled.
"""

import contextlib
import hashlib
import os
import shutil
import types
from collections.abc import Callable
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numba
import numpy as np

from scratchnet.backends.sources import source_digest

PLAIN = (bool, int, float, str, type(None), np.generic, np.dtype, numba.types.Type)
COMPILERS = ("numba", "llvmlite", "numba-cuda", "nvidia-nvvm", "nvidia-nvjitlink")
DIGEST_BYTES = 32
_SOURCES = source_digest(Path(__file__).parent)  # now, when the sources are imported


def recall(
    kernel: Any, signature: tuple, capability: tuple[int, int], compile: Callable[[], bytes]
) -> bytes:
    """What compile() returns for a kernel with arguments of such types: now, or in the past."""
    try:
        described = f"{_described(kernel)} {signature} {capability}"
        path = _folder() / hashlib.sha256(described.encode()).hexdigest()
    except (_Unknown, OSError):
        return compile()
    code = _read(path)
    if code is None:
        code = compile()
        _write(path, code)
    return code


def _read(path: Path) -> bytes | None:
    """What _write wrote; None where it is not there, or not whole."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, code = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
    return code if hashlib.sha256(code).digest() == digest else None


def _write(path: Path, code: bytes) -> None:
    """Keep the code; where it cannot be kept, nothing."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(hashlib.sha256(code).digest() + code)
        unfinished.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            unfinished.unlink()


class _Unknown(Exception):
    """A kernel closes over a value that we cannot tell from others."""


def _described(value: Any) -> str:
    """A text that differs where the value makes other code."""
    function = getattr(value, "py_func", None) or getattr(value, "_defn", value)
    if isinstance(function, types.FunctionType):
        code, outer = function.__code__, function.__globals__
        used = [cell.cell_contents for cell in function.__closure__ or ()]
        used += [outer[name] for name in code.co_names if name in outer]
        source = _file_digest(code.co_filename)
        return f"{source}:{code.co_firstlineno} {function.__qualname__}{_described(tuple(used))}"
    if isinstance(value, types.ModuleType | type | types.BuiltinFunctionType):
        return value.__name__
    if isinstance(value, tuple):
        return f"({', '.join(map(_described, value))})"
    if isinstance(value, PLAIN):
        return f"{type(value).__name__} {value!r}"
    raise _Unknown


@lru_cache
def _file_digest(name: str) -> str:
    try:
        return hashlib.sha256(Path(name).read_bytes()).hexdigest()
    except OSError as error:  # typed in at a prompt
        raise _Unknown from error


@lru_cache
def _folder() -> Path:
    """Where this state of sources and compiler keeps its code; what others kept is deleted."""
    state = hashlib.sha256(_SOURCES.encode())
    state.update(f"{[_version(name) for name in COMPILERS]}".encode())
    for name, value in sorted(os.environ.items()):
        if name.startswith("NUMBA_CUDA_"):
            state.update(f"{name}={value}\0".encode())
    parent = Path(os.environ.get("NUMBA_CACHE_DIR") or Path(__file__).parent / "__pycache__")
    folder = parent / f"scratchnet-cuda-{state.hexdigest()[:16]}"
    if not folder.exists():
        for stale in parent.glob("scratchnet-cuda-*"):
            shutil.rmtree(stale, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # as where a CUDA toolkit was installed without pip
        return "another"
