"""LoRAFineTunes as a list shows them, beside kopf's watch.

kopf tells nobody when its own list is complete, lists again only where its watch is too old, and reports no deletion
then. So a list of ours says at the start when everything is known, heals from time to time what the watch has lost, and
shows where a watch is deaf.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from lora_operator.cluster.api import FINETUNES, Api, ApiError, UnreachableError
from lora_operator.cluster.cache import Key, Store, is_older
from lora_operator.cluster.listing import list_into

if TYPE_CHECKING:
    from lora_operator.views.model import FineTune

logger = logging.getLogger(__name__)

BROUGHT_WITHIN_S = 10.0
"""What a list shows a watch brings at the same moment; this is for a process that has much to do."""
_SURELY_DEAF = 2
_RETRY_S = 1.0


class FineTuneList:
    """Lists the LoRAFineTunes of one namespace, or of all, into their store."""

    def __init__(
        self,
        api: Api,
        store: "Store[FineTune]",
        namespace: str | None,
        *,
        wake: Callable[[Key], None],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._api = api
        self._store = store
        self._namespace = namespace
        self._wake = wake
        self._clock = clock
        self._sleep = sleep
        self._began_s = clock()
        self._certain_s: float | None = (
            None  # when a watch brought something, or a list showed that nothing was missing
        )
        self._unbrought_s: list[float] = []  # when lists showed something, as long as a watch has brought nothing since
        self._behind_s: tuple[float, float] | None = None  # when a list was first behind, and when last
        self.path = FINETUNES.path(namespace)
        self.plural = FINETUNES.plural
        self.listed = asyncio.Event()
        """Set with the first whole list."""

    @property
    def quiet_for_s(self) -> float | None:
        """Seconds since the watch brought something, or a list showed that there was nothing to bring; None before."""
        return None if self._certain_s is None else self._clock() - self._certain_s

    @property
    def behind_for_s(self) -> float | None:
        """For how many seconds each list has been of a time before what was seen; None where the last one was not."""
        return None if self._behind_s is None else self._behind_s[1] - self._behind_s[0]

    @property
    def silent_for_s(self) -> float:
        """Seconds without a first list; afterwards silence says nothing, since nobody hears of kopf's bookmarks."""
        return 0.0 if self.listed.is_set() else self._clock() - self._began_s

    @property
    def deaf(self) -> bool:
        """Whether two lists have shown what the watch has not brought in all the time since."""
        now_s = self._clock()
        return sum(now_s - at_s > BROUGHT_WITHIN_S for at_s in self._unbrought_s) >= _SURELY_DEAF

    def brought(self) -> None:
        """The watch has brought something."""
        self._certain_s = self._clock()
        self._unbrought_s.clear()

    async def fill(self) -> None:
        """List until that works. Raises `ApiError` for a refusal that no time mends."""
        while True:
            try:
                await self.list()
            except (ApiError, UnreachableError) as error:
                if isinstance(error, ApiError) and not error.is_passing:
                    raise
                logger.info("%s cannot be listed yet: %s", self.path, error)
                await self._sleep(max(_RETRY_S, error.retry_after_s if isinstance(error, ApiError) else 0.0))
            else:
                return

    async def list(self) -> None:
        """Make the store what a list says; the watch goes on meanwhile. Raises `ApiError` or `UnreachableError`."""
        store, news, seen, began_s = self._store, set[Key](), self._store.version, self._clock()
        try:
            version = await list_into(store, self._api, FINETUNES, namespace=self._namespace, query={}, news=news)
        finally:
            # To the next list, and to the watch, what a list brought that failed half-way is no news any more.
            for owner in news:
                self._wake(owner)
        self._compare(seen, version)
        if not news and not self._unbrought_s:
            self._certain_s = self._clock()
        elif news and self.listed.is_set():  # the first one shows what there was before there was a watch
            self._unbrought_s.append(began_s)
        self.listed.set()

    def _compare(self, seen: str, version: str) -> None:
        if not is_older(version, seen):
            self._behind_s = None
            return
        now_s = self._clock()
        if self._behind_s is None:
            logger.warning("the list of %s is as of version %s, and %s was seen before", self.path, version, seen)
        self._behind_s = (self._behind_s[0] if self._behind_s else now_s, now_s)
