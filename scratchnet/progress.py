"""Signs of life on a terminal: a clock that runs on while something long is under way.

The clock is redrawn by a thread of its own, which gets its turn while Numba compiles, as LLVM runs
without Python's lock. Off a terminal nothing is written.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

SECONDS = 0.5  # from one redrawing to the next


@contextmanager
def redrawn(bar: tqdm) -> Iterator[None]:
    """Redraw the bar every half second, though nothing updates it."""
    if bar.disable:
        yield
        return
    done = threading.Event()

    def redraw() -> None:
        while not done.wait(SECONDS):
            bar.refresh()

    thread = threading.Thread(target=redraw, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def clock(doing: str) -> Iterator[None]:
    """Show what is being done and for how long; the line is gone afterwards."""
    with (
        tqdm(desc=doing, bar_format="{desc} {elapsed}", leave=False, disable=None) as bar,
        redrawn(bar),
    ):
        yield
