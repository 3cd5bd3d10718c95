"""Compiled code on disk that follows its sources.

Numba keeps what it compiled beside each file, or under NUMBA_CACHE_DIR, and compiles a function
anew when its own file changes; it does not notice a change in another file from which the function
has what it calls. So the folder holds a digest of all sources of this backend, and what was
compiled from others is deleted.
"""

from pathlib import Path

from scratchnet.backends.cpu.loops import piece
from scratchnet.backends.sources import source_digest

STAMP = "sources.sha256"


def forget_stale() -> None:
    """Delete what was compiled from sources that have changed since; where it cannot, nothing."""
    folder = Path(piece.stats.cache_path)  # one for all files of a package
    digest = source_digest(Path(__file__).parent)
    stamp = folder / STAMP
    try:
        if stamp.exists() and stamp.read_text(encoding="ascii") == digest:
            return
        for pattern in ("*.nbi", "*.nbc"):
            for compiled in folder.glob(pattern):
                compiled.unlink(missing_ok=True)
        stamp.write_text(digest, encoding="ascii")
    except OSError:
        return  # a folder that is read-only holds what its owner compiled
