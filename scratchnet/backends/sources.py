"""What a package's code is, in a number: compiled code is kept for as long as it stays the same."""

import hashlib
from pathlib import Path


def source_digest(package: Path) -> str:
    """Of the names and contents of a package's files."""
    digest = hashlib.sha256()
    for path in sorted(package.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
