"""kopf's lists, taken into the cache as they arrive.

kopf makes a task for each object of a list, and starts none before all lists have come: over thousands of resources
with their Jobs and pods this takes hundreds of MiB and many seconds. Here a list goes into the cache as a whole, as at
a resync, what it does not hold is forgotten, and kopf is shown that it is empty and from which version on to watch.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson

from lora_operator.cluster.api import Object, Resource
from lora_operator.cluster.cache import Key, Listing, Scope, Store
from lora_operator.cluster.carry_out import without_managed_fields


@dataclass(slots=True, kw_only=True)
class _Place:
    """Where lists of one URL path go, and the list that is under way there."""

    store: Store[Any]
    scope: Scope
    listing: Listing[Any] | None = None
    stack: ExitStack = field(default_factory=ExitStack)


class ListIntake:
    """Takes lists, and wakes those LoRAFineTunes that they bring news of."""

    def __init__(
        self,
        stores: Iterable[tuple[Resource, Store[Any]]],
        *,
        namespaces: Iterable[str],
        wake: Callable[[Key], None],
    ) -> None:
        scopes: list[str | None] = list(namespaces) or [None]
        self._places = {
            resource.path(namespace): _Place(store=store, scope=Scope(namespace=namespace))
            for resource, store in stores
            for namespace in scopes
        }
        self._wake = wake

    def follows(self, path: str) -> bool:
        """Whether lists of this URL path are taken."""
        return path in self._places

    def take(self, path: str, query: Mapping[str, str], answer: Object) -> Object:
        """Take in an answer, one chunk of a list; return what is left of it for kopf."""
        place, metadata = self._places[path], answer.get("metadata") or {}
        if place.listing is None or "continue" not in query:
            place.stack.close()  # a list that was cut has come to nothing
            place.listing = place.stack.enter_context(place.store.listing())
        place.listing.take(without_managed_fields(document) for document in answer.get("items") or ())
        if not metadata.get("continue"):
            changed = place.listing.finish(str(metadata.get("resourceVersion", "")), place.scope)
            place.stack.close()
            place.listing = None
            for key in changed:
                self._wake(key)
        return {**answer, "items": []}

    def response_class(self, base: type[aiohttp.ClientResponse]) -> type[aiohttp.ClientResponse]:
        """A response that gives lists to this intake."""

        async def json(response: aiohttp.ClientResponse, **options: Any) -> Any:
            path, query = response.url.path, response.url.query
            is_list = response.status == 200 and response.method == "GET" and "watch" not in query
            if is_list and self.follows(path):
                return self.take(path, query, orjson.loads(await response.read()))
            return await base.json(response, **options)

        return type("IntakeResponse", (base,), {"json": json})
