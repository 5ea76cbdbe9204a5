"""Events about LoRAFineTunes for `kubectl describe`: best effort, after the status that they report was written."""

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from lora_operator.cluster.api import EVENTS, FINETUNES, Api, ApiError, Object, UnreachableError
from lora_operator.cluster.login import USER_AGENT
from lora_operator.model.objects import EventRecord, FineTune
from lora_operator.model.wording import instant

logger = logging.getLogger(__name__)

LONGEST_BACKLOG = 5000
LONGEST_PAUSE_S = 5.0
_PAUSE_S = 0.05
_EPOCH = datetime.fromtimestamp(0, UTC)


class EventPoster:
    """Posts from a bounded backlog, so that a slow or refusing API never holds a run up; what does not fit is lost.

    While it is `hurried`, since runs wait for their first Job, an Event waits, too, up to `LONGEST_PAUSE_S`.
    """

    def __init__(
        self,
        api: Api,
        *,
        now: Callable[[], datetime],
        instance: str,
        hurried: Callable[[], bool] = lambda: False,
    ) -> None:
        self._hurried = hurried
        self._api = api
        self._now = now
        self._instance = instance
        self._backlog: asyncio.Queue[tuple[str, Object]] = asyncio.Queue(LONGEST_BACKLOG)
        self._latest_ns = 0
        self._lost = 0

    def post(self, finetune: FineTune, record: EventRecord) -> None:
        """Take an event into the backlog."""
        if self._backlog.full():
            if not self._lost:
                logger.warning("%d Events wait to be posted: what comes now is lost", LONGEST_BACKLOG)
            self._lost += 1
            return
        if self._lost:
            logger.warning("%d Events were lost, since too many waited", self._lost)
            self._lost = 0
        self._backlog.put_nowait((finetune.namespace, self._render(finetune, record)))

    async def run(self) -> None:
        """Post events, forever, each at most once."""
        while True:
            namespace, event = await self._backlog.get()
            await self._give_way()
            try:
                await self._api.create(EVENTS, namespace, event)
            except (ApiError, UnreachableError) as error:
                logger.debug("an Event was not posted: %s", error)
            finally:
                self._backlog.task_done()

    async def _give_way(self) -> None:
        waited_s = 0.0
        while self._hurried() and waited_s < LONGEST_PAUSE_S:
            await asyncio.sleep(_PAUSE_S)
            waited_s += _PAUSE_S

    async def drained(self) -> None:
        """Wait until all that was taken in is posted, while `run` goes on."""
        await self._backlog.join()

    def _number(self) -> str:
        """Grows from event to event: `kubectl describe` keeps those of one second in the order of their names."""
        microseconds = (self._now() - _EPOCH) // timedelta(microseconds=1)
        self._latest_ns = max(1000 * microseconds, self._latest_ns + 1)
        return f"{self._latest_ns:x}"

    def _render(self, finetune: FineTune, record: EventRecord) -> Object:
        now = instant(self._now())
        return {
            "apiVersion": EVENTS.api_version,
            "kind": EVENTS.kind,
            "metadata": {"name": f"{finetune.name}.{self._number()}", "namespace": finetune.namespace},
            "involvedObject": {
                "apiVersion": FINETUNES.api_version,
                "kind": FINETUNES.kind,
                "namespace": finetune.namespace,
                "name": finetune.name,
                "uid": finetune.uid,
                "resourceVersion": finetune.resource_version,
            },
            "type": record.type,
            "reason": record.reason,
            "message": record.message,
            "source": {"component": USER_AGENT},
            "reportingComponent": USER_AGENT,
            "reportingInstance": self._instance,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
