"""Which pod this process is: the chart says so in the environment."""

import os
import secrets
import socket
from pathlib import Path

_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def own_namespace() -> str:
    """The pod's namespace; empty outside of a cluster."""
    named = os.environ.get("POD_NAMESPACE", "")
    if named or not _NAMESPACE_FILE.exists():
        return named
    return _NAMESPACE_FILE.read_text().strip()


def own_identity() -> str:
    """The pod's name, which a container that restarts in its pod has again, and no other pod of its namespace has.

    Outside of a pod a name that no other process has.
    """
    return os.environ.get("POD_NAME") or f"{socket.gethostname()}-{secrets.token_hex(4)}"
