"""Two threads everywhere, and Hypothesis profiles without deadlines, as a first call compiles."""

import os

os.environ.setdefault("NUMBA_NUM_THREADS", "2")

from hypothesis import HealthCheck, settings  # noqa: E402

_COMPILES = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("dev", max_examples=25, **_COMPILES)
settings.register_profile("ci", max_examples=50, derandomize=True, print_blob=True, **_COMPILES)
settings.register_profile("nightly", max_examples=500, derandomize=False, **_COMPILES)
settings.load_profile("dev")
