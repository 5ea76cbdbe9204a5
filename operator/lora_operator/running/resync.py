"""Listing everything anew every few minutes, as a watch may miss things.

An object that was deleted while the API server was away is never reported to a watch; a list shows that it is gone. A
list that names no version is as of a moment after its request, never of one before what was seen by then. One that is
comes from an API server that is behind, for a while; or etcd was restored from a backup, and never catches up.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from lora_operator.cluster.api import FINETUNES, JOBS, PODS, Api, ApiError, Resource, UnreachableError
from lora_operator.cluster.cache import Cache, Key, Store, is_older
from lora_operator.cluster.kueue import Kueue
from lora_operator.cluster.listing import list_into
from lora_operator.running.supervision import OperatorFailedError
from lora_operator.running.watch import SELECTOR

logger = logging.getLogger(__name__)

LONGEST_BEHIND_S = 120.0
_BEHIND_INTERVAL_S = 10.0


class Resync:
    """Replaces the cache by lists, and wakes those LoRAFineTunes that this brought news of."""

    def __init__(
        self,
        api: Api,
        cache: Cache,
        kueue: Kueue,
        *,
        namespaces: Iterable[str],
        interval_s: float,
        wake: Callable[[Key], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._cache = cache
        self._kueue = kueue
        self._places: list[str | None] = list(namespaces) or [None]
        self._namespaces = self._places
        self._interval_s = interval_s
        self._wake = wake
        self._clock = clock
        self._behind_since_s: dict[str, float] = {}

    def compare(self, path: str, seen: str, version: str) -> None:
        """A list was as of `version`, and before its request `seen` had been seen.

        Raises `OperatorFailedError` where lists have been of the past for too long: nothing that was seen of what is no
        more can be believed, and a process that begins anew has seen nothing.
        """
        if not is_older(version, seen):
            self._behind_since_s.pop(path, None)
            return
        if path not in self._behind_since_s:
            logger.warning("the list of %s is as of version %s, and %s was seen before", path, version, seen)
        behind_s = self._clock() - self._behind_since_s.setdefault(path, self._clock())
        if behind_s > LONGEST_BEHIND_S:
            raise OperatorFailedError(
                f"The API server has been in the past for {behind_s:.0f} s: its list of {path} is as of version "
                f"{version}, and {seen} was seen before, so etcd seems to have been restored: a restart reads all anew"
            )

    def leave_out(self, namespaces: Iterable[str]) -> None:
        """Of all namespaces these are not listed."""
        left = set(namespaces)
        self._namespaces = [place for place in self._places if place not in left]

    async def fill(self, news: set[Key]) -> None:
        """List all kinds; add the LoRAFineTunes with news to `news`, also those that came before a failure.

        Raises `ApiError` or `UnreachableError`.
        """
        await self._list(FINETUNES, self._cache.finetunes, {}, news)
        for resource, store in ((JOBS, self._cache.jobs), (PODS, self._cache.pods)):
            await self._list(resource, store, {"labelSelector": SELECTOR}, news)
        if self._kueue.served:
            await self._list(self._kueue.workloads, self._cache.workloads, {}, news)

    async def run(self, after: Callable[[], None]) -> None:
        """Resync every interval, forever; call `after` each time that it worked.

        Raises `OperatorFailedError` when Kueue came, went or was exchanged, as its watch is begun at the start alone;
        and as `compare` does.
        """
        while True:
            await self._pause()
            news: set[Key] = set()
            try:
                if await self._kueue.has_changed(self._api):
                    raise OperatorFailedError("Kueue was installed, removed or exchanged: a restart takes note of it")
                await self.fill(news)
            except (ApiError, UnreachableError) as error:
                logger.warning("the resync failed and is tried again in %.0f s: %s", self._interval_s, error)
            else:
                after()
            for key in news:
                logger.debug("the resync found what no watch had brought", extra={"finetune": key})
                self._wake(key)

    async def _pause(self) -> None:
        """Wait for the next time, which comes soon while the API server is behind."""
        left_s = self._interval_s
        while left_s > 0:
            await asyncio.sleep(min(left_s, _BEHIND_INTERVAL_S))
            left_s = 0 if self._behind_since_s else left_s - _BEHIND_INTERVAL_S

    async def _list(self, resource: Resource, store: Store[Any], query: dict[str, str], news: set[Key]) -> None:
        for namespace in self._namespaces:
            seen = store.version
            try:
                version = await list_into(store, self._api, resource, namespace=namespace, query=query, news=news)
                self.compare(resource.path(namespace), seen, version)
            except ApiError as error:
                if error.code != 403 or len(self._namespaces) == 1:
                    raise
                # A watch that is refused, too, ends the process; until then the others are not held up.
                logger.error("%s in namespace %s cannot be listed: %s", resource.plural, namespace, error.message)
