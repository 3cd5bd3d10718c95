"""The arithmetic, three times over: `reference` to read, `cpu` and `cuda` to run.

A backend is a package that exports the functions listed here, under the same names and with the
same signatures: each operator is a pair `<op>_forward`, `<op>_backward` of pure functions, and an
update changes its arrays in place. To add an operator, list it here and write it in each package;
the tests pick it up from the list.
"""

import importlib
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
BACKENDS = ("reference", "cpu")


class BackendError(RuntimeError):
    """A backend that is known but cannot run on this machine."""


def get_backend(name: str) -> ModuleType:
    """The backend of that name. Raises ValueError for another name."""
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {name!r}")
    return importlib.import_module(f"scratchnet.backends.{name}")
