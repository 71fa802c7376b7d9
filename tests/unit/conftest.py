"""How property tests run: no deadlines on shared cores; in CI the same examples every time."""

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "foldtune",
    deadline=None,
    max_examples=40,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("foldtune")
