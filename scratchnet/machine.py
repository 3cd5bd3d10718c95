"""What a number depends on besides the code: versions, processor, threads, libraries."""

import ctypes
import platform
from pathlib import Path

import numba
import numpy as np

from scratchnet.backends import BackendError, get_backend


def versions() -> dict[str, str]:
    """Of Python, the libraries that compute, and scratchnet."""
    from scratchnet import __version__

    return {
        "scratchnet": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "numba": numba.__version__,
    }


def machine() -> dict[str, str | int]:
    """Platform, processor, BLAS, and the number of threads in use. No name of the machine."""
    return {
        "platform": f"{platform.system()} {platform.release()}",
        "cpu": cpu_name(),
        "threads": numba.get_num_threads(),
        "cores": numba.config.NUMBA_DEFAULT_NUM_THREADS,
        "blas": blas_name(),
    }


def cpu_name() -> str:
    """The processor as it calls itself."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def blas_name() -> str:
    """The library that NumPy's matrix products run in."""
    blas = np.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {})
    return f"{blas.get('name', 'unknown')} {blas.get('version', '')}".strip()


def gpu_name() -> str:
    """The GPU that the cuda backend runs on, or "none" and what is missing."""
    try:
        get_backend("cuda")
    except BackendError as error:
        return f"none: {error}"
    from scratchnet.backends.cuda import device

    return device.gpu_name()


def set_threads(threads: int) -> None:
    """Let the compiled loops, and NumPy's OpenBLAS where it is one, use so many threads.

    raises ValueError for a number below 1 or above the number of cores Numba started with
    """
    most = numba.config.NUMBA_NUM_THREADS
    if not 1 <= threads <= most:
        raise ValueError(f"threads must be 1 to {most} on this machine, got {threads}")
    numba.set_num_threads(threads)
    set_blas_threads = _openblas_function()
    if set_blas_threads is not None:
        set_blas_threads(threads)


def _openblas_function():
    """OpenBLAS's own switch, found through the library that NumPy has loaded; None without one."""
    library = ctypes.CDLL(np._core._multiarray_umath.__file__)
    for prefix in ("scipy_", ""):
        for suffix in ("64_", ""):
            try:
                return library[f"{prefix}openblas_set_num_threads{suffix}"]
            except AttributeError:
                continue
    return None
