"""Names derived from a run's uid: the same in operator and trainer, and after every restart."""

import base64
import hashlib
from functools import lru_cache

SUFFIX_LENGTH = 5


@lru_cache(maxsize=1024)
def run_suffix(uid: str) -> str:
    """Five characters of [a-z2-7] that distinguish two runs of the same name."""
    digest = hashlib.sha256(uid.encode()).digest()
    return base64.b32encode(digest).decode().lower()[:SUFFIX_LENGTH]
