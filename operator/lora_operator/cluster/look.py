"""Looking at the children of one LoRAFineTune: what `decide` is told, for the operator's turns and for `explain`."""

from collections.abc import Callable, Iterable

from lora_operator.cluster.api import JOBS, PODS, Api, ApiError
from lora_operator.cluster.cache import Cache, Key
from lora_operator.views import names
from lora_operator.views.model import EventView, FineTune, Observed, PodView, Rejection, Told
from lora_operator.views.observe import controller_of
from lora_operator.views.pods import is_running


def look(
    cache: Cache,
    finetune: FineTune,
    *,
    events: tuple[EventView, ...],
    told: Callable[[Iterable[PodView]], Told],
    kueue: bool = False,
    rejection: Rejection | None = None,
    confirmed: bool = False,
) -> Observed:
    """What the cache holds of a resource's children, with their Events and what running pods have told.

    `kueue`: the cluster has Kueue, and the cache follows its Workloads.
    """
    key = Key(finetune.namespace, finetune.name)
    pods = (*cache.pods.of(key, finetune.uid), *cache.pods.tombstones(key, finetune.uid))
    # Of running pods alone: what a pod said before it failed is not what its successor does.
    news = told(pod for pod in pods if is_running(pod))
    return Observed(
        jobs=cache.jobs.of(key, finetune.uid),
        pods=pods,
        kueue=kueue,
        workloads=cache.workloads.of(key, finetune.uid),
        events=events,
        progress=news.progress,
        asked=news.asked,
        rejection=rejection,
        absence_confirmed=confirmed,
    )


async def list_children(cache: Cache, api: Api, finetune: FineTune) -> None:
    """Read the Jobs and pods of a resource anew into the cache. Raises `ApiError` or `UnreachableError`."""
    key, query = Key(finetune.namespace, finetune.name), {"labelSelector": f"{names.UID_LABEL}={finetune.uid}"}
    for resource, store in ((JOBS, cache.jobs), (PODS, cache.pods)):
        chunks = [chunk async for chunk in api.list_chunks(resource, finetune.namespace, query)]
        documents = [document for chunk in chunks for document in chunk.documents]
        store.replace(key, finetune.uid, documents, chunks[-1].version)
    await _find_unlabelled(cache, api, finetune)


async def _find_unlabelled(cache: Cache, api: Api, finetune: FineTune) -> None:
    """The Job that the status names is the run's even if somebody took its labels off: no second one may be made."""
    name = finetune.status.get("jobName")
    if not isinstance(name, str) or not name or cache.jobs.uid_at(Key(finetune.namespace, name)):
        return
    before = cache.jobs.version
    try:
        document = await api.get(JOBS, finetune.namespace, name)
    except ApiError as error:
        if error.code != 404:
            raise
        return
    metadata, attempt = document["metadata"], names.attempt_of(name)
    if attempt and controller_of(document)[1] == finetune.uid:
        labels = {**(metadata.get("labels") or {}), **names.child_labels(finetune.name, finetune.uid, attempt)}
        cache.jobs.put({**document, "metadata": {**metadata, "labels": labels}}, as_of=before)
