"""Named arrays and a JSON description in one `.npz`, without pickle, written whole or not."""

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

_META = "__meta__"


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or that belongs to another network."""


def save_checkpoint(
    path: str | Path, arrays: dict[str, np.ndarray], meta: dict[str, Any] | None = None
) -> Path:
    """Write the arrays and a JSON-able description to path, replacing what was there at once.

    The file is complete before it takes its name: a full disk or an interruption leaves the
    previous checkpoint as it was. Returns the path. raises OSError where it cannot be written
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    description = np.array(json.dumps(meta or {}))
    try:
        with partial.open("wb") as file:
            np.savez(file, **{_META: description}, **arrays)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def load_checkpoint(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the description that `save_checkpoint` wrote.

    raises CheckpointError, naming the file, where it is missing, damaged or no checkpoint
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        meta = json.loads(str(arrays.pop(_META)))
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}") from None
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is damaged or no checkpoint of scratchnet ({type(error).__name__}: {error})"
        ) from None
    return arrays, meta


def check_arrays(
    owner: str, arrays: dict[str, np.ndarray], expected: dict[str, np.ndarray]
) -> None:
    """Names and shapes are those of the expected arrays; CheckpointError tells each difference."""
    faults = [f"{name} is missing" for name in expected if name not in arrays]
    faults += [f"{name} is unknown" for name in arrays if name not in expected]
    faults += [
        f"{name} has shape {arrays[name].shape} instead of {expected[name].shape}"
        for name in expected
        if name in arrays and arrays[name].shape != expected[name].shape
    ]
    if faults:
        more = f", and {len(faults) - 4} more" if len(faults) > 4 else ""
        raise CheckpointError(f"the checkpoint does not fit {owner}: {'; '.join(faults[:4])}{more}")
