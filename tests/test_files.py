"""Files are whole or not there, whoever writes them; a folder has one writer at a time."""

import subprocess
import sys
import threading

import numpy as np
import pytest

from scratchnet import load_checkpoint, save_checkpoint
from scratchnet.files import alone_in, replacing, write_text


def test_what_fails_half_way_leaves_the_file_as_it_was(tmp_path):
    path = write_text(tmp_path / "deep" / "report.md", "before")
    with pytest.raises(KeyError), replacing(path) as file:
        file.write(b"aft")
        raise KeyError
    assert path.read_text() == "before"
    assert list(path.parent.iterdir()) == [path]


def test_an_error_of_the_disk_names_the_file(tmp_path):
    path = tmp_path / "curves.png"
    with pytest.raises(OSError, match="No space left") as caught, replacing(path):
        raise OSError(28, "No space left on device")
    assert caught.value.filename == str(path)


def test_threads_that_write_one_checkpoint_leave_a_whole_one(tmp_path):
    path = save_checkpoint(tmp_path / "last.npz", {"w": np.zeros(1000)})

    def write(value):
        for _ in range(20):
            save_checkpoint(path, {"w": np.full(1000, value)})

    threads = [threading.Thread(target=write, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        values = load_checkpoint(path)[0]["w"]
        assert values.shape == (1000,) and len(set(values)) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_has_one_writer_at_a_time(tmp_path):
    program = (
        "import sys; from scratchnet.files import alone_in\n"
        "with alone_in(sys.argv[1]): print('alone')"
    )
    other = [sys.executable, "-c", program, str(tmp_path)]
    with alone_in(tmp_path):
        done = subprocess.run(other, capture_output=True, text=True)
        assert "another training is writing there" in done.stderr and not done.stdout
        with pytest.raises(BlockingIOError), alone_in(tmp_path):
            pass
    assert subprocess.run(other, capture_output=True, text=True).stdout == "alone\n"
