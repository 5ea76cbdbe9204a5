"""Looking at the children of one LoRAFineTune: what `decide` is told, for the operator's turns and for `explain`."""

from collections.abc import Callable, Iterable

from lora_operator.cluster.api import JOBS, PODS, Api
from lora_operator.cluster.cache import Cache, Key, Scope
from lora_operator.cluster.listing import list_into
from lora_operator.views import names
from lora_operator.views.model import EventView, FineTune, Observed, PodView, Rejection, Told
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
    pods = cache.pods.of(key, finetune.uid)
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
    query = {"labelSelector": f"{names.UID_LABEL}={finetune.uid}"}
    scope = Scope(owner=Key(finetune.namespace, finetune.name), owner_uid=finetune.uid)
    for resource, store in ((JOBS, cache.jobs), (PODS, cache.pods)):
        await list_into(store, api, resource, namespace=finetune.namespace, query=query, scope=scope)
