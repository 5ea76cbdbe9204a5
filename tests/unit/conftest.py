"""Settings of the unit tests: few examples, so that the layer stays within ten seconds. `make soak` takes more."""

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "unit", max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("soak", max_examples=5000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "unit"))
