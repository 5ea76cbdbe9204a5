"""The operator as kopf runs it: it starts, logs in, hears of LoRAFineTunes, and stops.

kopf brings news of LoRAFineTunes alone, and writes nothing: handlers of changes, timers and daemons would add
finalizers and annotations to users' objects. Jobs, pods and Workloads come by reflectors of our own, and runs are
worked on in tasks of our own: they begin and end with kopf.

What a handler or such a task raises kopf would log, and go on: so the first error stops kopf as its kubelet would, and
is the reason with which the process ends.
"""

import asyncio
import contextlib
import gc
import logging
import signal
from collections.abc import AsyncIterator
from typing import Any, cast

import kopf
from kopf._cogs.structs.references import Insights
from kubernetes.aio.client.api_client import ApiClient
from prometheus_client import CollectorRegistry, disable_created_metrics

from lora_operator.cluster.api import CONNECT_TIMEOUT_S, FINETUNES, REQUEST_TIMEOUT_S, Api, ApiError, UnreachableError
from lora_operator.cluster.lease import Election
from lora_operator.cluster.login import credentials, load_configuration
from lora_operator.cluster.reflector import WATCH_TIMEOUT_S
from lora_operator.controller.checks import check_definition, prepare
from lora_operator.controller.health import make_application, serving
from lora_operator.controller.identity import own_identity
from lora_operator.controller.metrics import Metrics, count_requests
from lora_operator.controller.operator import Operator, make_election, make_operator
from lora_operator.controller.supervision import OperatorFailedError
from lora_operator.controller.work import Work
from lora_operator.model.config import OperatorConfig

logger = logging.getLogger(__name__)

# Of what kopf does when it stops, cleaning up takes the longest: writes that were begun, then the Lease.
STOPPED_WITHIN_S = 20
# Objects may carry annotations of 256 KiB, and of a chunk kopf holds text and objects at once.
_IN_CHUNK = 50
# Whatever the API server refuses, kopf asks for again after so long, as after an outage, and at last every 3 s.
_BACKOFFS_S = (0.5, 1.0, 2.0, 3.0)


@kopf.on.startup(errors=kopf.ErrorsMode.PERMANENT)
async def start(settings: kopf.OperatorSettings, memo: kopf.Memo, **_: Any) -> None:
    """Have kopf write nothing and need no right of its own, and begin our own tasks."""
    with memo.work.ends_process():
        configure(settings, memo.work.operator.config)
        memo.work.start()


@kopf.on.login(errors=kopf.ErrorsMode.PERMANENT)
async def log_in(memo: kopf.Memo, **_: Any) -> kopf.ConnectionInfo:
    """At first, and when the API server refuses what kopf logged in with: a token may have been replaced."""
    with memo.work.ends_process():
        found = await credentials()
        if found == memo.get("credentials"):
            raise OperatorFailedError("The API server no longer accepts the credentials")
        memo.credentials = found
        return found


@kopf.on.event(FINETUNES.group, FINETUNES.version, FINETUNES.plural)
async def bring(event: kopf.RawEvent, memo: kopf.Memo, **_: Any) -> None:
    """A LoRAFineTune is there, has changed or is gone: the store has it, and the run is looked at."""
    with memo.work.ends_process():
        memo.work.operator.take_in(event["type"], event["object"])


@kopf.on.cleanup(errors=kopf.ErrorsMode.PERMANENT)
async def stop(memo: kopf.Memo, **_: Any) -> None:
    """Finish what was begun, and give the Lease back: kopf would wait for our tasks in vain, and cancel them."""
    logger.info("stopping")
    await memo.work.stop()


def configure(settings: kopf.OperatorSettings, config: OperatorConfig) -> None:
    """Settings of kopf."""
    settings.posting.enabled = False
    settings.peering.standalone = True
    # Without it kopf wants rights on CRDs and namespaces.
    settings.scanning.disabled = True
    settings.networking.request_timeout = REQUEST_TIMEOUT_S
    settings.networking.connect_timeout = CONNECT_TIMEOUT_S
    settings.networking.error_backoffs = _backoffs_s(config.watch_inactivity_s)
    settings.watching.server_timeout = WATCH_TIMEOUT_S
    settings.watching.client_timeout = WATCH_TIMEOUT_S + CONNECT_TIMEOUT_S
    settings.watching.inactivity_timeout = config.watch_inactivity_s
    settings.watching.chunk_size = _IN_CHUNK
    # A task for each object that was listed, which lives for so long after it.
    settings.queueing.idle_timeout = 0.2
    settings.persistence.diffbase_storage = _NoDiffBase()
    settings.process.ultimate_exiting_timeout = STOPPED_WITHIN_S


def _backoffs_s(inactivity_s: float) -> list[float]:
    """Then kopf ends, since a right may be missing: while a watch is silent for longer, it would count from 0 again."""
    found = [_BACKOFFS_S[0]]
    while sum(found) < 0.6 * inactivity_s:
        found.append(_BACKOFFS_S[min(len(found), len(_BACKOFFS_S) - 1)])
    return found


class _NoDiffBase(kopf.DiffBaseStorage):
    """kopf copies each object deeply to see what has changed in it, which nobody here asks for."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> kopf.BodyEssence | None:
        return None

    def store(self, **_: Any) -> None:
        pass


async def operate(config: OperatorConfig) -> None:
    """Run until SIGTERM or SIGINT, which cancel it as long as it only looks at the cluster.

    Raises where the operator cannot start or go on; the text is for a person.
    """
    # Lists make and drop documents by the hundred, which Python's own threshold takes for garbage: twice the CPU.
    gc.set_threshold(10_000, 20, 50)
    async with _work(config) as (work, election):
        operator = work.operator
        async with serving(make_application(operator.registry, ready=operator.unready), config.http_port):
            _cancel_on_signals()
            # Not in a handler: which namespaces kopf watches is said with its call.
            await prepare(operator, election)
            await _run(work)


def _cancel_on_signals() -> None:
    """Until kopf takes the signals, when it is called, there is nothing to stop in order."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, cast("asyncio.Task[None]", task).cancel)


@contextlib.asynccontextmanager
async def _work(config: OperatorConfig) -> AsyncIterator[tuple[Work, Election]]:
    disable_created_metrics()
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    configuration = await load_configuration([count_requests(metrics)])
    async with ApiClient(configuration) as client:
        api, identity = Api(client), own_identity()
        election = make_election(config, api, identity)
        operator = make_operator(config, api, metrics=metrics, registry=registry, identity=identity)
        metrics.queue_depth.set_function(lambda: len(operator.queue))
        metrics.leader.set_function(lambda: float(operator.working and election.leading))
        yield Work(operator, election), election


async def _run(work: Work) -> None:
    """Run kopf, and the work beside it, until a signal or an error stops both. Raises that error."""
    namespaces, insights = work.operator.namespaces, Insights()
    check = asyncio.create_task(_check_that_kopf_watches(work, insights))
    try:
        await kopf.operator(
            memo=kopf.Memo(work=work), clusterwide=not namespaces, namespaces=namespaces, insights=insights
        )
    except Exception as error:
        work.failure = work.failure or await _why(work.operator, error)
    finally:
        check.cancel()
        await work.stop()  # where kopf itself failed it may not have cleaned up
    if work.failure is not None:
        raise work.failure


async def _check_that_kopf_watches(work: Work, insights: Insights) -> None:
    """kopf asks once which resources there are; an API server that has just started may not serve ours yet."""
    with contextlib.suppress(OperatorFailedError), work.ends_process():
        await insights.ready_resources.wait()
        if not insights.watched_resources:
            raise OperatorFailedError(f"The API server does not serve {FINETUNES.plural} yet")


async def _why(operator: Operator, error: Exception) -> Exception:
    """What kopf's end means; it ends with a refusal that it has met again and again, or with what makes no sense."""
    try:
        await check_definition(operator.api)
    except (ApiError, UnreachableError):
        pass
    except Exception as reason:
        return reason
    return OperatorFailedError(f"The watch of {FINETUNES.plural} ended: {error}")
