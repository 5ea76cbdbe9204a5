"""Lists LoRAFineTunes beside kopf's watch of them.

kopf tells nobody when its own list is complete, lists again only where its watch is too old, and reports no deletion
then. So a list of ours says at the start when everything is known, heals afterwards what the watch has lost, and shows
where a watch is deaf.
"""

import logging

from lora_operator.cluster.api import ApiError, UnreachableError
from lora_operator.cluster.reflector import Lister
from lora_operator.cluster.store import Key

logger = logging.getLogger(__name__)

# What a list shows a watch brings at the same moment; this is for a process that has much to do.
BROUGHT_WITHIN_S = 10.0
_SURELY_DEAF = 2


class FineTuneLister(Lister):
    """Lists, and knows whether kopf's watch brings what a list shows."""

    _began_s = 0.0
    _brought_s: float | None = None
    _shown_s: tuple[float, ...] = ()
    """When those lists began that have shown something, as long as the watch has brought nothing since."""

    @property
    def is_watch_deaf(self) -> bool:
        """Whether two lists have shown something, and the watch has brought nothing in all the time since."""
        now_s = self._clock()
        return sum(now_s - shown_s > BROUGHT_WITHIN_S for shown_s in self._shown_s) >= _SURELY_DEAF

    def brought(self) -> None:
        """The watch has brought something."""
        self.heard_s = self._brought_s = self._clock()
        self._shown_s = ()

    async def fill(self) -> None:
        """List until that works. Raises `ApiError` where the API server refuses again and again."""
        while not self.listed.is_set():
            try:
                await self.list()
            except (ApiError, UnreachableError) as error:
                logger.info("%s cannot be listed yet: %s", self.path, error)
                await self._back_off(error)

    async def list(self) -> str:
        """As any lister; what the watch brings meanwhile shows that it is not deaf."""
        self._began_s = self._clock()
        return await super().list()

    def _wake(self, news: set[Key]) -> None:
        # The first list shows what there was before there was a watch.
        if news and self.listed.is_set() and (self._brought_s is None or self._brought_s < self._began_s):
            self._shown_s = (*self._shown_s, self._began_s)
        super()._wake(news)
