"""Compiled code is used again by the next process, with the same bits, and not after any source has
changed.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "scratchnet"
PROGRAM = """
import numpy as np
from scratchnet.backends import cpu
from scratchnet.backends.cpu import relu
y = cpu.relu_forward(np.array([-1.0, 2.0], np.float32))
print(y.tolist(), sum(relu._forward.stats.cache_hits.values()))
"""

STEP = """
import hashlib
import numpy as np
from scratchnet import Involution2D
rng = np.random.default_rng(0)
layer = Involution2D(32, 3, groups=2, reduction=2, rng=rng)
x = rng.standard_normal((4, 13, 11, 32)).astype(np.float32)
y = layer.forward(x, training=True)
dx = layer.backward(rng.standard_normal(y.shape).astype(np.float32))
gradients = [parameter.grad for parameter in layer.parameters() if parameter.trainable]
print(*(hashlib.sha256(array).hexdigest()[:8] for array in (y, dx, *gradients)))
"""


@pytest.fixture
def run(tmp_path):
    """Run a program on a copy of the package; what it prints."""
    shutil.copytree(PACKAGE, tmp_path / "scratchnet", ignore=shutil.ignore_patterns("*.nb?"))
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path)}

    def run(program: str = PROGRAM) -> str:
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=environment, cwd=tmp_path, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout.strip()

    return run


def test_compiled_code_is_used_again_until_any_source_changes(run, tmp_path):
    assert run() == "[0.0, 2.0] 0"
    assert run() == "[0.0, 2.0] 1"
    # From loops.py relu has the bounds of its loops; relu.py itself stays as it is.
    loops = tmp_path / "scratchnet" / "backends" / "cpu" / "loops.py"
    loops.write_text(loops.read_text().replace("CHUNKS = 16", "CHUNKS = 8"))
    assert run() == "[0.0, 2.0] 0"
    assert run() == "[0.0, 2.0] 1"


def test_code_from_the_cache_gives_the_bits_of_code_just_compiled(run):
    """A function that others call is compiled once more for each; only they are in the cache."""
    assert run(STEP) == run(STEP)
