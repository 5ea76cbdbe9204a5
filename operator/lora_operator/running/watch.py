"""What is followed, and kopf's part: start, login and stop.

LoRAFineTunes do not come by `kopf.on.event`. kopf reads lists and events with the interpreter's own parser, copies what
it reads, and keeps each object in a task of its own until that has been idle for a while. With 6,000 LoRAFineTunes that
is 4 CPU seconds more until their watch begins; with 1,600 that carry 256 KiB of annotations each, 90 MiB more (see
docs/benchmarks.md). So the reflector that follows Jobs, pods and Workloads follows LoRAFineTunes, too.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import kopf

from lora_operator.cluster.api import CONNECT_TIMEOUT_S, FINETUNES, JOBS, PODS, REQUEST_TIMEOUT_S
from lora_operator.cluster.kueue import Kueue
from lora_operator.cluster.reflector import Source
from lora_operator.cluster.store import Key, Stores
from lora_operator.views import names

SELECTOR = f"{names.MANAGED_BY_LABEL}={names.MANAGED_BY}"

Login = Callable[[], Awaitable[kopf.AiohttpSession]]


def kopf_settings() -> kopf.OperatorSettings:
    """Settings under which kopf writes nothing of its own and needs no rights of its own."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.peering.standalone = True
    # Without it kopf wants rights on CRDs and namespaces.
    settings.scanning.disabled = True
    settings.networking.request_timeout = REQUEST_TIMEOUT_S
    settings.networking.connect_timeout = CONNECT_TIMEOUT_S
    settings.process.ultimate_exiting_timeout = 20
    return settings


def sources_of(stores: Stores, kueue: Kueue, wake: Callable[[Key], None]) -> list[Source]:
    """The kinds that are followed, where they are kept, and who hears of their news."""
    sources = [
        Source(resource=FINETUNES, store=stores.finetunes, wake=wake),
        Source(resource=JOBS, store=stores.jobs, wake=wake, selector=SELECTOR),
        Source(resource=PODS, store=stores.pods, wake=wake, selector=SELECTOR),
    ]
    if kueue.served:
        sources.append(Source(resource=kueue.workloads, store=stores.workloads, wake=wake))
    return sources


def register(registry: kopf.OperatorRegistry, login: Login) -> None:
    """Register with kopf how to log in."""

    @kopf.on.login(registry=registry)
    async def log_in(**_: Any) -> kopf.AiohttpSession:
        return await login()
