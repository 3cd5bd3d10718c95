"""What README shows and the examples that need no data set run as they stand."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def _run(*arguments, **environment):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_network_of_readme_learns():
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
    loss, accuracy = re.search(r"\((\S+), (\S+)\)\s*$", _run("-c", block)).groups()
    assert float(loss) < math.log(10) / 2 and float(accuracy) > 0.5  # log 10 and 0.1 by guessing


def test_an_operator_of_ones_own_is_checked():
    told = _run(ROOT / "examples" / "gradient_check.py")
    assert told.count("passed: the largest relative error") == 2
    assert "wrong at index" in told


def test_launches_are_counted_in_the_simulator():
    told = _run(ROOT / "examples" / "gpu_launches.py", NUMBA_ENABLE_CUDASIM="1")
    assert re.findall(r"(\S+) +(?:con|in)volution +\d+ launches", told) == [
        *["mnist"] * 2, *["fashion-mnist"] * 2, *["cifar10"] * 2,
    ]  # fmt: skip
