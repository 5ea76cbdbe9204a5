"""A run as it changes: one watch, restarted when it ends, with at most one request a second."""

import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from lora_client.cluster.connection import ApiError, Cluster, Object, UnreachableError
from lora_client.errors import ClientError

LEAST_PAUSE_S = 1.0
"""Between two requests of one who watches."""
PATIENCE_S = 300.0
_TICK_S = 0.5
_WATCH_S = 240
_SILENCE_S = 90.0
"""A bookmark comes every minute: without one the connection is dead, as after a laptop has slept."""
_GONE = 410


def follow(
    cluster: Cluster, name: str, report: Callable[[str], None], *, patience_s: float = PATIENCE_S
) -> Iterator[Object | None]:
    """The run as it is, then each change; None twice a second in between, so that a picture can be drawn anew.

    Raises `ClientError` when the run is deleted, `UnreachableError` when nobody answers for `patience_s`, or at once
    where nobody has answered before.
    """
    cluster.least_pause_s = LEAST_PAUSE_S
    lost_at: float | None = None
    answered = False
    while True:
        try:
            resource = cluster.get("lorafinetunes", name)
            lost_at, answered = None, True
            yield resource
            yield from _watch(cluster, name, str(resource["metadata"]["resourceVersion"]))
        except (UnreachableError, ApiError) as error:
            if isinstance(error, ApiError) and error.code < 500 and error.code not in (_GONE, 429):
                raise
            if isinstance(error, UnreachableError) and not answered:
                raise
            now = time.monotonic()
            if lost_at is None:
                lost_at = now
                report(f"{error}; trying again")
            elif now - lost_at > patience_s:
                raise
            yield None  # who waits for so long and no longer looks at the clock now


def _watch(cluster: Cluster, name: str, version: str) -> Iterator[Object | None]:
    """Changes until the server ends the watch."""
    events: queue.Queue[Any] = queue.Queue()
    query = {
        "watch": "true",
        "fieldSelector": f"metadata.name={name}",
        "resourceVersion": version,
        "timeoutSeconds": str(_WATCH_S),
        "allowWatchBookmarks": "true",
    }

    def read() -> None:
        try:
            for line in cluster.lines(cluster.path("lorafinetunes"), query, silence_s=_SILENCE_S):
                events.put(json.loads(line))
        except (ClientError, ValueError) as error:
            events.put(error)
        finally:
            events.put(None)

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            event = events.get(timeout=_TICK_S)
        except queue.Empty:
            yield None
            continue
        if event is None:
            return
        if isinstance(event, ApiError):
            raise event
        # Whether the server is there, the next request shows: what was cut off or fell silent says nothing of it.
        if isinstance(event, ClientError | ValueError) or event.get("type") == "ERROR":
            return
        if event.get("type") == "DELETED":
            raise ClientError(f"{name} was deleted while it was watched")
        if event.get("type") in ("ADDED", "MODIFIED"):
            yield event["object"]
