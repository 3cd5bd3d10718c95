"""Named arrays and a JSON description in one `.npz`, without pickle, written whole or not."""

import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from scratchnet.files import replacing

_META = "__meta__"
LONGEST_NAME = 1000
_TAKEN = (_META, "file", "allow_pickle")  # the last two are arguments of np.savez
# What zipfile, zlib, NumPy and json raise for bytes that are not theirs; RuntimeError is for zip
# methods and encryption, which a flipped bit can ask for.
_UNREADABLE = (
    zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError, LookupError,
    TypeError,
)  # fmt: skip


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or that belongs to another network."""


def save_checkpoint(
    path: str | Path, arrays: dict[str, np.ndarray], meta: dict[str, Any] | None = None
) -> Path:
    """Write the arrays and a JSON-able description to path, replacing what was there at once.

    The file is complete before it takes its name: a full disk or an interruption leaves the
    previous checkpoint as it was. Returns the path. raises OSError where it cannot be written;
    TypeError, ValueError for arrays, names or a description that such a file cannot keep
    """
    _check_savable(arrays)
    description = np.array(_description(meta))
    with replacing(path) as file:
        np.savez(file, **{_META: description}, **arrays)
    return Path(path)


def _check_savable(arrays: dict[str, np.ndarray]) -> None:
    if not isinstance(arrays, dict):
        raise TypeError(
            "save_checkpoint: arrays must be a dictionary of arrays, such as network.state(), got "
            f"{type(arrays).__name__}"
        )
    for name, array in arrays.items():
        plain = isinstance(name, str) and "\0" not in name and len(name) <= LONGEST_NAME
        if not plain or name in _TAKEN or name.endswith(".npy"):
            raise ValueError(
                f"save_checkpoint: an array is named {name!r:.80}; accepted are strings of up to "
                f"{LONGEST_NAME} letters other than {', '.join(_TAKEN)} that do not end in .npy "
                "and hold no zero byte"
            )
        if np.asarray(array).dtype.hasobject:
            raise TypeError(f"save_checkpoint: {name} holds Python objects, which need pickle")


def _description(meta: dict[str, Any] | None) -> str:
    if not isinstance(meta, dict | None):
        raise TypeError(f"save_checkpoint: meta must be a dictionary, got {type(meta).__name__}")
    try:
        return json.dumps(meta or {})
    except (TypeError, ValueError) as error:
        raise TypeError(f"save_checkpoint: meta cannot be written as JSON: {error}") from None


def load_checkpoint(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the description that `save_checkpoint` wrote.

    raises CheckpointError, naming the file, where it is missing, damaged or no checkpoint
    """
    path = Path(path)
    try:
        # Opened here, since np.load leaves a damaged file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as entries:
            arrays = {name: entries[name] for name in entries.files}
        meta = json.loads(str(arrays.pop(_META)))
        if not isinstance(meta, dict):
            raise TypeError("its description is no dictionary")
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}") from None
    except _UNREADABLE as error:
        raise CheckpointError(
            f"{path} is damaged or no checkpoint of scratchnet ({type(error).__name__}: {error})"
        ) from None
    return arrays, meta


def check_arrays(
    owner: str, arrays: dict[str, np.ndarray], expected: dict[str, np.ndarray]
) -> None:
    """Names and shapes are those of the expected arrays, and the values fit into theirs;
    CheckpointError tells each difference.
    """
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    faults = [f"{name} is missing" for name in expected if name not in arrays]
    faults += [f"{name} is unknown" for name in arrays if name not in expected]
    faults += [
        f"{name} has shape {arrays[name].shape} instead of {expected[name].shape}"
        for name in expected
        if name in arrays and arrays[name].shape != expected[name].shape
    ]
    faults += [
        f"{name} holds {arrays[name].dtype}, which does not fit into {expected[name].dtype}"
        for name in expected
        if name in arrays and not np.can_cast(arrays[name].dtype, expected[name].dtype, "same_kind")
    ]
    if faults:
        more = f", and {len(faults) - 4} more" if len(faults) > 4 else ""
        raise CheckpointError(f"the checkpoint does not fit {owner}: {'; '.join(faults[:4])}{more}")
