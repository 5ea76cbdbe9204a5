"""A bound on what goes on at once, of which one namespace gets a part."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from weakref import WeakValueDictionary


class FairSlots:
    """`most` slots for all, of which one namespace holds `most_of_namespace`, so that a slow one cannot fill them.

    Whoever waits for a slot of all is the first of few of its namespace: a flood has no long line there.
    """

    def __init__(self, *, most: int, most_of_namespace: int) -> None:
        self._of_all = asyncio.Semaphore(most)
        self._most_of_namespace = most_of_namespace
        self._of_namespace: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    @contextlib.asynccontextmanager
    async def slot(self, namespace: str) -> AsyncIterator[None]:
        """Hold a slot, once there is one for the namespace."""
        own = self._of_namespace.setdefault(namespace, asyncio.Semaphore(self._most_of_namespace))
        async with own, self._of_all:
            yield
