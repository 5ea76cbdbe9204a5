"""What the reflectors follow beside kopf's watch of LoRAFineTunes."""

from collections.abc import Callable

from lora_operator.cluster.api import JOBS, PODS
from lora_operator.cluster.kueue import Kueue
from lora_operator.cluster.reflector import Source
from lora_operator.cluster.store import Key, Stores
from lora_operator.model import names

SELECTOR = f"{names.MANAGED_BY_LABEL}={names.MANAGED_BY}"


def sources_of(stores: Stores, kueue: Kueue, wake: Callable[[Key], None]) -> list[Source]:
    """The kinds that are followed, where they are kept, and who hears of their news."""
    sources = [
        Source(resource=JOBS, store=stores.jobs, wake=wake, selector=SELECTOR),
        Source(resource=PODS, store=stores.pods, wake=wake, selector=SELECTOR),
    ]
    if kueue.served:
        sources.append(Source(resource=kueue.workloads, store=stores.workloads, wake=wake))
    return sources
