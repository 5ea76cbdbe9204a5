"""Before the first list: what the cluster has and allows, and which namespaces can be looked after."""

import asyncio
import contextlib
import logging
import time

from lora_operator.cluster.api import ApiError, UnreachableError
from lora_operator.cluster.lease import Election
from lora_operator.running.operator import Operator
from lora_operator.running.self_check import (
    NoDefinitionError,
    can_look_after,
    check_definition,
    check_lease,
    check_rights,
    rights_used,
)
from lora_operator.running.supervision import OperatorFailedError

logger = logging.getLogger(__name__)

REVIEW_INTERVAL_S = 30.0
_DEFINITION_S = 5.0


async def prepare(operator: Operator, election: Election) -> None:
    """Check the cluster, once it answers; an API server may be later than its operator, or busy."""
    deadline_s = time.monotonic() + operator.config.watch_stale_s
    reported = False
    while True:
        try:
            await check_definition(operator.api)
            await _find_out(operator)
            await check_lease(operator.api, election.namespace, election.name)
            operator.hindrance = ""
            return
        except NoDefinitionError as error:
            if not operator.hindrance:
                logger.error("waiting: %s", error)
            operator.hindrance = str(error)
            deadline_s = time.monotonic() + operator.config.watch_stale_s  # the API server has answered
            await asyncio.sleep(min(operator.config.retry_max_s, _DEFINITION_S))
        except (ApiError, UnreachableError) as error:
            if isinstance(error, ApiError) and not error.is_passing:
                raise
            if time.monotonic() > deadline_s:
                raise OperatorFailedError(f"The API server does not answer: {error}") from error
            if not reported:
                logger.warning("waiting for the API server: %s", error)
                reported = True
            await asyncio.sleep(operator.config.retry_base_s)


async def _find_out(operator: Operator) -> None:
    """Whether there is Kueue, and which namespaces can be looked after."""
    kueue, config = operator.kueue, operator.config
    await kueue.discover(operator.api)
    rights = rights_used(kueue=kueue.served)
    operator.left_out = tuple(await check_rights(operator.api, config.namespaces, rights))
    operator.namespaces = tuple(place for place in config.namespaces if place not in operator.left_out)
    operator.metrics.left_out(operator.left_out)


async def wait_for_namespaces(operator: Operator) -> None:
    """End the process, by raising, when a namespace that was left out can be looked after: a restart takes it up."""
    rights = rights_used(kueue=operator.kueue.served)
    while True:
        await asyncio.sleep(min(operator.config.resync_interval_s, REVIEW_INTERVAL_S))
        for namespace in operator.left_out:
            with contextlib.suppress(ApiError, UnreachableError):
                if await can_look_after(operator.api, namespace, rights):
                    raise OperatorFailedError(f"Namespace {namespace} can be watched now: a restart takes it up")
