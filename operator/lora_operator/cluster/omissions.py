"""Statuses that the API server did not store as they were written, because its definition knows fewer fields.

So it is after an upgrade of the operator without one of the definition, and after a rollback of that. What is left out
would be written again at every look, and left out again.
"""

import logging
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import orjson

from lora_operator.views.model import FineTune

logger = logging.getLogger(__name__)

_MOST = 10_000


class Omissions:
    """Remembers, by uid, the status that was last written in vain, and what was stored of it; of both the digests."""

    def __init__(self) -> None:
        self._written: dict[str, tuple[bytes, bytes]] = {}
        self._reported = False

    def note(self, uid: str, written: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
        """Compare what was written with the resource that the API server answered."""
        self._written.pop(uid, None)
        status = stored.get("status")
        if status == written:
            return
        if not self._reported:
            missing = ", ".join(sorted(written.keys() - status.keys())) if isinstance(status, Mapping) else ""
            which = f" ({missing})" if missing else ""
            logger.warning(
                "The definition in the cluster is older than the operator, and parts of the status are not stored%s: "
                "apply crds/lorafinetunes.yaml, or upgrade the chart that installs it",
                which,
            )
            self._reported = True
        while len(self._written) >= _MOST:
            self._written.pop(next(iter(self._written)))
        self._written[uid] = (_digest(status), _digest(written))

    def covers(self, finetune: FineTune, status: Mapping[str, Any]) -> bool:
        """Whether this very status was written, and all of it was stored that can be."""
        written = self._written.get(finetune.uid)
        return written is not None and written == (_digest(finetune.status), _digest(status))


def _digest(status: object) -> bytes:
    return blake2b(orjson.dumps(status, option=orjson.OPT_SORT_KEYS), digest_size=16).digest()
