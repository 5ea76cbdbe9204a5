"""Where the cache lies that runs share: `HF_HOME`, which a cache claim is mounted at."""

import os
from collections.abc import Mapping
from pathlib import Path


def cache_home(environment: Mapping[str, str]) -> Path:
    """The folder of the cache."""
    return Path(environment.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface"))  # noqa: PTH111 - may stay unset


def cached_rows(environment: Mapping[str, str]) -> Path:
    """Where encoded rows are kept in it."""
    return cache_home(environment) / "rows"
