"""kopf's part: login, lists and watches, which it begins anew as needed. What they bring is taken by `Intake`."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import kopf

from lora_operator.cluster.api import CHUNK_SIZE, CONNECT_TIMEOUT_S, FINETUNES, JOBS, PODS, REQUEST_TIMEOUT_S, Resource
from lora_operator.cluster.cache import Cache, Key
from lora_operator.cluster.intake import Source
from lora_operator.cluster.kueue import Kueue
from lora_operator.views import names

SELECTOR = f"{names.MANAGED_BY_LABEL}={names.MANAGED_BY}"

# A new Job, its pod and what the scheduler says of that come within a moment: one look and one write tell of all. After
# a pod's news its Job's follow, the later the busier the Job controller is, and those end the wait.
SETTLE_S = 0.1
POD_SETTLE_S = 0.5

Login = Callable[[], Awaitable[kopf.AiohttpSession]]


class _NoDiffBase(kopf.DiffBaseStorage):
    """kopf copies each object to compare it with an earlier state. Nobody here asks for the difference."""

    def build(self, *, body: kopf.Body, extra_fields: Any = None) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        return None


def operator_settings(*, inactivity_s: float) -> kopf.OperatorSettings:
    """Settings under which kopf watches, recovers within seconds, and writes nothing of its own.

    A watch that is silent for `inactivity_s` is begun anew.
    """
    settings = kopf.OperatorSettings()
    settings.persistence.diffbase_storage = _NoDiffBase()
    settings.posting.enabled = False
    settings.peering.standalone = True
    # Without it kopf wants rights on CRDs and namespaces.
    settings.scanning.disabled = True
    # Sooner than kopf's own 54 s and more: after an outage the operator is blind for 3 s at most.
    settings.networking.error_backoffs = (0.5, 1, 2, 3, 3)
    settings.networking.request_timeout = REQUEST_TIMEOUT_S
    settings.networking.connect_timeout = CONNECT_TIMEOUT_S
    # The API server sends a bookmark every minute, so a stream that is silent for longer is dead.
    settings.watching.inactivity_timeout = inactivity_s
    settings.watching.server_timeout = 600
    settings.watching.client_timeout = 610
    settings.watching.connect_timeout = CONNECT_TIMEOUT_S
    settings.watching.chunk_size = CHUNK_SIZE
    settings.queueing.idle_timeout = 0.2
    settings.queueing.worker_limit = None
    settings.process.ultimate_exiting_timeout = 20
    for resource in (JOBS, PODS):
        settings.watching.label_selectors[resource.group, resource.version, resource.plural] = SELECTOR
    return settings


def sources_of(cache: Cache, kueue: Kueue, wake: Callable[[Key, float], None]) -> list[Source]:
    """The kinds that are followed, where they are kept, and whom their events wake, after how many seconds."""

    def at_once(key: Key) -> None:
        wake(key, 0)

    def soon(key: Key) -> None:
        wake(key, SETTLE_S)

    def after_the_job(key: Key) -> None:
        wake(key, POD_SETTLE_S)

    sources = [
        Source(resource=FINETUNES, store=cache.finetunes, wake=at_once),
        Source(resource=JOBS, store=cache.jobs, wake=soon),
        Source(resource=PODS, store=cache.pods, wake=after_the_job),
    ]
    if kueue.served:
        sources.append(Source(resource=kueue.workloads, store=cache.workloads, wake=soon))
    return sources


def register(registry: kopf.OperatorRegistry, resources: Iterable[Resource], login: Login) -> None:
    """Register the login and, so that kopf follows the kinds, a handler for each."""

    @kopf.on.login(registry=registry)
    async def log_in(**_: Any) -> kopf.AiohttpSession:
        return await login()

    for resource in resources:
        name = f"follow-{resource.plural}"
        kopf.on.event(resource.group, resource.version, resource.plural, registry=registry, id=name)(_never_called)


async def _never_called(event: kopf.RawEvent, **_: Any) -> None:
    raise AssertionError(f"an event was not taken in: {event['type']}")
