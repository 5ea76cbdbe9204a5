"""The version of the trainer."""

import importlib.metadata

DISTRIBUTION = "lora-finetune-operator"


def own_version() -> str:
    """The installed distribution's version; `source` where the trainer runs from a checkout that is not installed."""
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "source"
