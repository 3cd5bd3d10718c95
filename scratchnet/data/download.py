"""Downloads: mirrors in order, SHA-256 checked before a file gets its name."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from scratchnet.data.errors import DataError
from scratchnet.data.sources import Remote, Source

CHUNK = 1 << 16  # bytes; pooch's own 1024 makes a 170 MB file slow
TIMEOUT = (10, 30)  # seconds to connect, seconds without a byte


def fetch(source: Source, folder: Path, progress: bool) -> None:
    """Download into `folder` what is missing of `source`.

    A file is written under a temporary name and moved when it is whole and its SHA-256 is right.

    raises  DataError  no mirror gave a file: says where to put which files by hand
    """
    for file in source.files:
        if file.is_in(folder):
            continue
        failures = []
        for mirror in source.mirrors:
            failure = _fetch_file(file, mirror + file.name, folder, progress)
            if failure is None:
                break
            failures.append(f"{mirror + file.name}: {failure}")
        else:
            raise DataError(_by_hand(source, folder, failures))


def _fetch_file(file: Remote, url: str, folder: Path, progress: bool) -> str | None:
    """Download one file from one mirror; returns why it failed, or None."""
    # Both take a while to import, and only a download needs them.
    import pooch
    import requests.exceptions

    bar = _Bar(
        desc=file.name,
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        disable=None if progress else True,  # None: shown on a terminal only
    )
    with bar, _quiet(pooch.get_logger()):
        try:
            pooch.retrieve(
                url,
                known_hash=f"sha256:{file.sha256}",
                fname=file.name,
                path=folder,
                downloader=pooch.HTTPDownloader(progressbar=bar, chunk_size=CHUNK, timeout=TIMEOUT),
            )
        except requests.exceptions.HTTPError as error:
            return f"HTTP status {error.response.status_code}"
        except requests.exceptions.Timeout:
            return "no answer in time"
        except requests.exceptions.ConnectionError:
            return "no connection"
        except requests.exceptions.RequestException:
            return "the transfer broke off"
        except ValueError:
            return "wrong SHA-256"
        except OSError as error:
            raise DataError(
                f"{folder}: {file.name} cannot be written there ({error.strerror or error}); "
                f"choose another folder with root or SCRATCHNET_DATA"
            ) from None
    return None


class _Bar(tqdm):
    """A bar that pooch can test before its total is known, where tqdm's own raises TypeError."""

    def __bool__(self) -> bool:
        return True


@contextlib.contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _by_hand(source: Source, folder: Path, failures: list[str]) -> str:
    names = ", ".join(file.name for file in source.files)
    return (
        f"{source.title} is not in {folder} and could not be downloaded ({'; '.join(failures)}): "
        f"put {names} into that folder by hand, or set SCRATCHNET_DATA to the folder "
        f"that holds {source.folder}/"
    )
