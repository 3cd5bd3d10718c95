"""The arithmetic, three times over: `reference` to read, `cpu` and `cuda` to run.

A backend is a package that exports the functions listed here, under the same names and with the
same signatures: each operator is a pair `<op>_forward`, `<op>_backward` of pure functions, and an
update changes its arrays in place. To add an operator, list it here and write it in each package;
the tests pick it up from the list.

What else layers and training need of a backend are the few functions of HELPERS: they move arrays
to where the backend computes and back, do the small arithmetic between operators there, and may
record a step to replay it. `host.py` has them for NumPy arrays.
"""

import importlib
from functools import cache
from types import ModuleType

OPERATORS = (
    "conv2d",
    "conv2d_relu",
    "conv2d_relu_maxpool2d",
    "involution",
    "generated_involution",
    "attention_kernel",
    "batchnorm",
    "channel_affine",
    "maxpool2d",
    "avgpool2d",
    "globalavgpool2d",
    "dense",
    "relu",
    "flatten",
    "add",
    "dropout",
    "softmax_cross_entropy",
)
UPDATES = ("sgd_update", "adam_update")
HELPERS = (
    "to_device",
    "to_host",
    "pack",
    "zeros_like",
    "copy_into",
    "update_each",
    "changing",
    "recorded",
    "normalised",
    "inv_std_of",
    "fold_norm",
    "update_running",
    "norm_of",
    "scale_all",
    "count_correct",
)
BACKENDS = ("reference", "cpu")  # those that run on any machine
DEVICES = ("cpu", "cuda", "auto")


class BackendError(RuntimeError):
    """A backend that is known but cannot run on this machine."""


def get_backend(name: str) -> ModuleType:
    """The backend of that name.

    raises ValueError for another name, BackendError with what is missing where it cannot run here
    """
    if name not in (*BACKENDS, "cuda"):
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, cuda, got {name!r}")
    try:
        return _module(name)
    except RuntimeError as error:
        if "cannot cache" not in str(error):
            raise
        raise BackendError(
            "Numba finds no folder to keep compiled code in: set NUMBA_CACHE_DIR to one that can "
            f"be written ({error})"
        ) from error


@cache
def _module(name: str) -> ModuleType:
    # Kept, as layers ask for their backend in every step, and to look an import up takes long.
    return importlib.import_module(f"scratchnet.backends.{name}")


def choose_backend(device: str) -> str:
    """The backend for a device: "cpu", "cuda", or "auto", which is "cuda" where there is a GPU.

    raises ValueError for another name, BackendError where "cuda" is asked for and cannot run
    """
    if device not in DEVICES:
        raise ValueError(f"device must be one of {', '.join(DEVICES)}, got {device!r}")
    if device == "cpu":
        return "cpu"
    try:
        get_backend("cuda")
    except BackendError:
        if device == "cuda":
            raise
        return "cpu"
    return "cuda"
