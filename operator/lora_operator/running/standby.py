"""What a process that stands by keeps of pods and Jobs that are gone: what it would have to account for as leader."""

from lora_operator.cluster.cache import Cache, Key
from lora_operator.decision.retries import stored_retries
from lora_operator.views.conditions import result_of


def drop_stored(cache: Cache, key: Key) -> None:
    """Drop what the stored status of a run accounts for; of a run that is gone or has its verdict that is all.

    While one pod that is gone is not counted, the others stay: of pods that train together they may be the reason for
    its end.
    """
    if not cache.pods.has_tombstones(key) and not cache.jobs.has_tombstones(key):
        return
    finetune = cache.finetunes.get(key)
    if finetune is None:
        cache.pods.acknowledge(key)
        cache.jobs.acknowledge(key)
        return
    gone = {pod.uid for pod in cache.pods.tombstones(key, finetune.uid)}
    if result_of(finetune.status):
        cache.jobs.acknowledge(key, [job.uid for job in cache.jobs.tombstones(key, finetune.uid)])
    elif not gone <= set(stored_retries(finetune.status).counted):
        return
    cache.pods.acknowledge(key, gone)
