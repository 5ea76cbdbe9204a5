"""A list request into a store, chunk by chunk."""

from collections.abc import Callable, Mapping
from typing import Any

from lora_operator.cluster.api import Api, Resource
from lora_operator.cluster.cache import Key, Store


async def list_into(
    store: Store[Any],
    api: Api,
    resource: Resource,
    *,
    namespace: str | None,
    query: Mapping[str, str],
    news: set[Key],
    heard: Callable[[], None] = lambda: None,
) -> str:
    """Make the store what the list says, within the namespace; add the owners with news to `news`.

    `heard` is called at each chunk. Returns the version of the list. Raises `ApiError` or `UnreachableError`; the store
    and `news` then hold what has come so far, and have lost nothing.
    """
    version, listed = "", set[str]()
    async for chunk in api.list_chunks(resource, namespace, query):
        heard()
        version = chunk.version
        for document in chunk.documents:
            listed.add(str(document["metadata"].get("uid", "")))
            owner = store.put(document, as_of=version, listed=True)
            if owner is not None:
                news.add(owner)
    news |= store.prune(version, listed, namespace)
    return version
