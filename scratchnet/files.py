"""Files that take their names when they are complete, and folders that one process writes to."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """A new file to write to, which takes the place of the one at path when all is written.

    A full disk or an interruption leaves what was there as it was. raises OSError, naming the path
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    own = f"{os.getpid()}.{threading.get_ident()}"
    partial = path.with_name(f".{path.name}.{own}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file, whole or not at all. Returns the path."""
    with replacing(path) as file:
        file.write(text.encode())
    return Path(path)


@contextmanager
def alone_in(folder: str | Path) -> Iterator[None]:
    """Nobody else, another process neither, is in this block with this folder.

    raises BlockingIOError where somebody is. Where a system has no such locks, it is not checked
    """
    if fcntl is None:
        yield
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: str | Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BlockingIOError(
            error.errno, "another training is writing there: take another folder", str(folder)
        ) from None
    except OSError:
        return  # a network's file system that has no locks
