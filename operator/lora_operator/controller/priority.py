"""Who is looked at first when many wait."""

from lora_operator.cluster.store import Key, Stores
from lora_operator.model.conditions import result_of


def is_urgent(stores: Stores, key: Key) -> bool:
    """Whether somebody waits for the first look at a run, or at what he has just changed of it.

    After a start thousands of others wait, finished ones among them. A run that has a Job waits for nothing but news.
    """
    if stores.finetunes.is_packed(key):
        return False
    finetune = stores.finetunes.get(key)
    if finetune is None or result_of(finetune.status):
        return False
    seen = finetune.status.get("observedGeneration")
    return not stores.jobs.of(key, finetune.uid) if seen is None else bool(seen != finetune.generation)
