"""A list request into a store, chunk by chunk."""

from collections.abc import Mapping
from typing import Any

from lora_operator.cluster.api import Api, Resource
from lora_operator.cluster.cache import Key, Scope, Store
from lora_operator.cluster.carry_out import without_managed_fields


async def list_into(
    store: Store[Any],
    api: Api,
    resource: Resource,
    *,
    namespace: str | None,
    query: Mapping[str, str],
    scope: Scope,
    news: set[Key] | None = None,
) -> None:
    """Make the store what the list says, within the scope; add the owners with news to `news`.

    Raises `ApiError` or `UnreachableError`; the store and `news` then hold what has come so far, and have lost nothing.
    """
    version = ""
    with store.listing() as listing:
        try:
            async for chunk in api.list_chunks(resource, namespace, query):
                version = chunk.version
                listing.take((without_managed_fields(document) for document in chunk.documents), version)
            listing.finish(version, scope)
        finally:
            if news is not None:
                news |= listing.changed
