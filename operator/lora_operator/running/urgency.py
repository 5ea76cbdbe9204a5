"""Who is looked at first when many wait: a run that nobody has looked at, and last one that has ended."""

from lora_operator.cluster.cache import Cache, Key
from lora_operator.views.conditions import result_of

NEW = 0
GOING_ON = 1
ENDED = 2


def rank_of(cache: Cache, key: Key) -> int:
    """The rank of a run in the queue, the most urgent one being 0."""
    if cache.finetunes.is_packed(key):
        return ENDED
    finetune = cache.finetunes.get(key)
    if finetune is None or result_of(finetune.status):
        return ENDED
    seen = "observedGeneration" in finetune.status or cache.jobs.of(key, finetune.uid)
    return GOING_ON if seen else NEW
