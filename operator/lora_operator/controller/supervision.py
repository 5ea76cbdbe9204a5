"""Parts that run side by side for as long as the process: the first that ends, ends all."""

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any


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
