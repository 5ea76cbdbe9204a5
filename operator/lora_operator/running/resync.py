"""Listing everything anew every few minutes, as a watch may miss things.

An object that was deleted while the API server was away is never reported to a watch; a list shows that it is gone.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from lora_operator.cluster.api import Api, ApiError, UnreachableError
from lora_operator.cluster.finetune_list import FineTuneList
from lora_operator.cluster.kueue import Kueue
from lora_operator.cluster.reflector import Reflector
from lora_operator.running.supervision import OperatorFailedError

logger = logging.getLogger(__name__)

_BEHIND_INTERVAL_S = 10.0


async def resync(
    api: Api,
    kueue: Kueue,
    lists: Sequence[FineTuneList | Reflector],
    *,
    interval_s: float,
    after: Callable[[], None],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """List every interval, forever, and soon again while the API server is behind; call `after` where that worked.

    One kind, or namespace, that cannot be listed holds up no other. Raises `OperatorFailedError` when Kueue came, went
    or was exchanged, as its watch is begun at the start alone.
    """
    while True:
        left_s = interval_s
        while left_s > 0:
            await sleep(min(left_s, _BEHIND_INTERVAL_S))
            behind = any(one.behind_for_s is not None for one in lists)
            left_s = 0 if behind else left_s - _BEHIND_INTERVAL_S
        try:
            if await kueue.has_changed(api):
                raise OperatorFailedError("Kueue was installed, removed or exchanged: a restart takes note of it")
            failures = [await _list(one) for one in lists]
        except (ApiError, UnreachableError) as error:
            failures = [str(error)]
        for failure in filter(None, failures):
            logger.warning("the resync failed and is tried again in %.0f s: %s", interval_s, failure)
        if not any(failures):
            after()


async def _list(one: FineTuneList | Reflector) -> str:
    """What is wrong; empty where nothing is."""
    try:
        await one.list()
    except (ApiError, UnreachableError) as error:
        return f"{one.path}: {error}"
    return ""
