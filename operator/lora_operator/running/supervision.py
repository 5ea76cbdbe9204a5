"""Parts that run side by side for as long as the process: the first that ends, ends all."""

import asyncio
import logging
import os
import threading
from collections.abc import Coroutine, Mapping
from typing import Any

logger = logging.getLogger(__name__)


class OperatorFailedError(Exception):
    """A part that must run has ended, or a watch is deaf: the process ends, and whoever runs it starts it again."""


async def run_together(parts: Mapping[str, Coroutine[Any, Any, None]]) -> None:
    """Run parts that never end by themselves; the first that does ends all, with the reason."""
    tasks = {asyncio.create_task(part, name=name) for name, part in parts.items()}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        ended = done.pop()
        error = None if ended.cancelled() else ended.exception()
        if isinstance(error, OperatorFailedError):
            raise error
        raise OperatorFailedError(f"The {ended.get_name()} ended: {error or 'without a reason'}") from error
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def end_within(limit_s: float, reason: BaseException) -> None:
    """End the process with status 1 in so many seconds, unless it has ended by then: nothing may hold up a restart.

    A failed watch can leave tasks of kopf behind that wait for ever, however often they are cancelled.
    """

    def end() -> None:
        logger.critical("%s", reason)
        os._exit(1)

    timer = threading.Timer(limit_s, end)
    timer.daemon = True
    timer.start()
