"""What the reflectors follow beside kopf's watch of LoRAFineTunes, and how soon its news is looked at."""

from collections.abc import Callable

from lora_operator.cluster.api import JOBS, PODS
from lora_operator.cluster.cache import Cache, Key
from lora_operator.cluster.kueue import Kueue
from lora_operator.cluster.reflector import Source
from lora_operator.views import names

SELECTOR = f"{names.MANAGED_BY_LABEL}={names.MANAGED_BY}"

# A new Job, its pod and what the scheduler says of that come within a moment: one look and one write serve all. After
# a pod's news its Job's follow, the later the busier the Job controller is, and those end the wait.
SETTLE_S = 0.1
POD_SETTLE_S = 0.5


def sources_of(cache: Cache, kueue: Kueue, wake: Callable[[Key, float], None]) -> list[Source]:
    """The kinds that are followed, where they are kept, and after how many seconds their news is looked at."""

    def soon(key: Key) -> None:
        wake(key, SETTLE_S)

    def after_the_job(key: Key) -> None:
        wake(key, POD_SETTLE_S)

    sources = [
        Source(resource=JOBS, store=cache.jobs, wake=soon, selector=SELECTOR),
        Source(resource=PODS, store=cache.pods, wake=after_the_job, selector=SELECTOR),
    ]
    if kueue.served:
        sources.append(Source(resource=kueue.workloads, store=cache.workloads, wake=soon))
    return sources
