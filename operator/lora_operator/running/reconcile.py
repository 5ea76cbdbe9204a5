"""One turn of one LoRAFineTune: look, decide, write. It reads the cache, except where a plan asks for more."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from lora_operator.cluster.api import JOBS, Api, ApiError
from lora_operator.cluster.cache import Cache, Key, key_of
from lora_operator.cluster.carry_out import TryAgainError, Writer
from lora_operator.cluster.child_events import ChildEvents
from lora_operator.cluster.kueue import Kueue
from lora_operator.cluster.look import Found, is_locked_out, look, read_live
from lora_operator.cluster.post_events import EventPoster
from lora_operator.cluster.progress_poll import ProgressPoller
from lora_operator.decision.decide import decide
from lora_operator.decision.proof import claims_success
from lora_operator.decision.trouble import KNOWN_FROM_EVENTS
from lora_operator.running import logs
from lora_operator.running.changes import Changes
from lora_operator.running.contention import Contention
from lora_operator.running.logs import DecisionLine
from lora_operator.running.pacing import SCHEDULER_S, Pacing, paced
from lora_operator.views.conditions import has_just_ended, result_of, state_of
from lora_operator.views.config import OperatorConfig
from lora_operator.views.model import FineTune, Observed, Plan, Rejection, soonest
from lora_operator.views.wording import UNANSWERED, sentence

logger = logging.getLogger(__name__)

_MOST_ROUNDS = 8
_PATIENCE_FAILURES = 2


@dataclass(slots=True, kw_only=True)
class _Turn:
    """What has happened in a turn to the resource with this uid: a refusal, live reads, and a change of a Job.

    `read` is what a live read found that no write has followed yet; None before one. `resource`: the resource was read,
    too.
    """

    uid: str
    rejection: Rejection | None = None
    read: Found | None = None
    resource: bool = False
    patched: bool = False

    def has_read(self, job_names: Iterable[str], cache: Cache, finetune: FineTune) -> bool:
        """Whether all of these Jobs were read, with their pods, and are still known; reading none is a read, too."""
        read = self.read
        return read is not None and read.jobs.keys() >= set(job_names) and read.is_in(cache, finetune)

    def forget_reads(self) -> None:
        """What was read is of a time before a write, or says nothing of a Job that has turned up."""
        self.read, self.resource = None, False


class Reconciler:
    """Turns what is known of a resource into writes. It holds nothing that a restart would lose."""

    def __init__(
        self,
        *,
        api: Api,
        cache: Cache,
        kueue: Kueue,
        config: OperatorConfig,
        poller: ProgressPoller,
        events: ChildEvents,
        poster: EventPoster,
        count: Callable[[FineTune, Observed, Mapping[str, Any]], None],
        now: Callable[[], datetime],
        pacing: Pacing,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pacing = pacing
        self._api = api
        self._cache = cache
        self._kueue = kueue
        self._config = config
        self._poller = poller
        self._events = events
        self._poster = poster
        self._count = count
        self._now = now
        self._writer = Writer(api, cache, kueue)
        self._contention = Contention(clock)
        self._changes = Changes(
            clock, uid_of=self._writer.uid_of, first_s=config.retry_max_s, longest_s=config.resync_interval_s
        )

    async def reconcile(self, key: Key, *, failures: int = 0) -> float | None:
        """Bring the cluster to where the resource wants it; return the seconds until the next look, None for no need.

        `failures` is how often in a row the turn has failed before. Raises `ApiError`, `UnreachableError` or
        `TryAgainError` where it is to be tried again.
        """
        turn = _Turn(uid="")
        for _ in range(_MOST_ROUNDS):
            finetune = self._cache.finetunes.get(key)
            if finetune is None:
                self._cache.pods.acknowledge(key)
                self._cache.jobs.acknowledge(key)
                self._events.forget(key)
                self._contention.forget(key)
                self._changes.forget(key)
                self._pacing.forget(key)
                return None
            if finetune.uid != turn.uid:
                # What was read of an earlier resource by this name, or was refused to it, says nothing of this one.
                turn = _Turn(uid=finetune.uid)
            observed = await self._observe(key, finetune, turn)
            config = paced(self._config, running=len(self._poller))
            plan = decide(finetune, observed, config, self._now())
            if self._holds_back(key, plan, turn) or await self._reads_more(finetune, observed, plan, turn):
                continue
            with DecisionLine(finetune, plan) as line:
                if turn.rejection is None or plan.patch:
                    patient = failures >= _PATIENCE_FAILURES
                    if not await self._create_and_patch(finetune, plan, turn, line, patient=patient):
                        continue
                postponed_s, again_s = self._postponed_s(key, finetune, observed, plan), None
                if postponed_s is None:
                    if not await self._write_status(finetune, observed, plan, line):
                        turn = _Turn(uid=finetune.uid)
                        continue
                    again_s = self._acknowledge(key, observed, plan)
                wait_s = await self._finish(key, finetune, plan, line, postponed_s)
                wait_s = line.next_look_s = soonest(wait_s, again_s)
            # What follows the end, such as the time to live of the Job, is decided once the verdict is stored.
            return 0.0 if has_just_ended(finetune, plan.status) else wait_s
        raise TryAgainError("the resource changes faster than its status can be written")

    async def is_locked_out(self, key: Key) -> bool:
        """Whether a 401 is about the operator: a webhook may answer with it, too, about one object."""
        return await is_locked_out(self._api, key)

    def _postponed_s(self, key: Key, finetune: FineTune, observed: Observed, plan: Plan) -> float | None:
        """Seconds that the status and its Events wait; None where they are due.

        It is as after a crash at this point: the next turn finds the same, and writes the same status.
        """
        if self._writer.is_written(finetune, plan.status):
            self._pacing.forget(key)
            return None
        if self._events.is_in_line(key) and self._needs_events(key, finetune, plan):
            return self._config.pending_check_s  # sooner once they are read
        scheduled = any(condition.type == "PodScheduled" for pod in observed.pods for condition in pod.conditions)
        placed = scheduled or any(workload.conditions for workload in observed.workloads)
        return self._pacing.delay_s(key, finetune.status, plan.status, placed=placed) or None

    def _acknowledge(self, key: Key, observed: Observed, plan: Plan) -> float | None:
        """The status accounts for what is gone; a claim of success, and the Job for it, are kept until the verdict.

        Returns the seconds until a look without what is gone: the pod that follows may have been seen beside it, and
        its own next news, which the scheduler mostly brings by then, may be long in coming.
        """
        if result_of(plan.status):
            self._poller.forget(pod.uid for pod in observed.pods)
            self._changes.forget(key)
            self._cache.pods.acknowledge(key)
            self._cache.jobs.acknowledge(key)
            return None
        acknowledged = self._cache.pods.acknowledge(key, (pod.uid for pod in observed.pods if not claims_success(pod)))
        return SCHEDULER_S if acknowledged else None

    def _holds_back(self, key: Key, plan: Plan, turn: _Turn) -> bool:
        """Whether a change is wanted that the cluster has just refused or undone, so that all is to be decided anew."""
        held, refusal = self._changes.held_back(key, plan.patch)
        turn.rejection = turn.rejection or refusal
        return held

    async def _reads_more(self, finetune: FineTune, observed: Observed, plan: Plan, turn: _Turn) -> bool:
        """Whether more had to be read before such a plan may be carried out, so that all is to be decided anew.

        The resource that was read may name a later attempt, whose Job was not read: a plan rests on the Jobs that it
        names itself.
        """
        key = key_of(finetune)
        unread = not turn.has_read(plan.job_names, self._cache, finetune)
        disputed = unread and self._contention.is_disputed(key, finetune, plan.status)
        # A status alone is guarded by the version of the resource on which it rests.
        resource = not turn.resource and (disputed or bool(plan.create or plan.patch or plan.delete))
        changed = plan.read_for_status and not self._writer.is_written(finetune, plan.status)
        # Much of it waits, and is replaced until then: each sentence that a queue has for a run.
        news = changed and self._postponed_s(key, finetune, observed, plan) is None
        if (plan.read_first or news or disputed) and (resource or unread):
            if disputed:
                self._events.read_anew(key)
            # After the verdict it is the Jobs alone that may yet have to be stopped.
            pods = not result_of(finetune.status)
            turn.read = await read_live(self._cache, self._api, finetune, plan.job_names, resource=resource, pods=pods)
            turn.resource |= resource
            return True
        if not self._needs_events(key, finetune, plan) or self._watch_events(key, finetune) is None:
            return False
        self._events.read_anew(key)
        return not self._events.is_in_line(key)

    async def _observe(self, key: Key, finetune: FineTune, turn: _Turn) -> Observed:
        events = await self._events.latest(key)
        observed = look(
            self._cache,
            finetune,
            events=events,
            ask=self._poller.latest,
            kueue=self._kueue.served,
            rejection=turn.rejection,
        )
        return replace(observed, undone=self._changes.undone(key), refused=self._changes.refused(key))

    def _needs_events(self, key: Key, finetune: FineTune, plan: Plan) -> bool:
        """Whether Events that this process has not read yet may be where the stored reason for waiting comes from."""
        if not plan.watch_events or self._events.has_read(key):
            return False
        before, after = state_of(finetune.status), state_of(plan.status)
        return before != after and before in KNOWN_FROM_EVENTS

    def _watch_events(self, key: Key, finetune: FineTune) -> float | None:
        jobs, pods = self._cache.jobs.of(key, finetune.uid), self._cache.pods.of(key, finetune.uid)
        return self._events.watch(key, jobs, pods)

    async def _create_and_patch(
        self, finetune: FineTune, plan: Plan, turn: _Turn, line: DecisionLine, *, patient: bool
    ) -> bool:
        """Carry out the first half of a plan; False if all is to be decided anew.

        So it is where a write was refused, and where a Job was adopted or changed: the server's answer may say more of
        it than was known, and the watch that follows is no news then.
        """
        adopted, key = False, key_of(finetune)
        for patch in plan.patch:
            known = self._changes.was_refused(key, patch)
            rejection = await self._writer.patch(finetune, patch, patient=patient or known)
            self._changes.sent(key, patch, rejection)
            if rejection is not None:
                return _refused(finetune, turn, rejection)
            line.wrote("patched", patch.kind, patch.name)
        if plan.patch and not turn.patched:
            # Once a turn: whatever becomes of the change, the status is written.
            turn.patched = True
            turn.forget_reads()
            return False
        for manifest in plan.create:
            creation = await self._writer.create(finetune, manifest, patient=patient)
            if creation.rejection is not None:
                return _refused(finetune, turn, creation.rejection)
            line.wrote("adopted" if creation.adopted else "created", manifest["kind"], manifest["metadata"]["name"])
            adopted |= creation.adopted and manifest["kind"] == JOBS.kind
        if adopted:
            turn.forget_reads()
        return not adopted

    async def _write_status(self, finetune: FineTune, observed: Observed, plan: Plan, line: DecisionLine) -> bool:
        """Write the status if it changed; False if the resource changed meanwhile and all is to be decided anew."""
        if self._writer.is_written(finetune, plan.status):
            return True
        if not await self._writer.write_status(finetune, plan.status):
            return False
        line.wrote_status()
        key = key_of(finetune)
        self._pacing.forget(key)
        stored = self._cache.finetunes.get(key)
        self._contention.wrote(key, finetune, stored)
        self._count(finetune, observed, plan.status)
        return True

    async def _delete(self, finetune: FineTune, plan: Plan, line: DecisionLine) -> ApiError | None:
        """Delete what the plan names; one that is refused keeps no other, least of all a Job that holds GPUs."""
        failure: ApiError | None = None
        for target in plan.delete:
            try:
                await self._writer.delete(finetune, target)
            except ApiError as error:
                failure = failure or error
            else:
                line.wrote("deleted", target.kind, target.name)
        return failure

    async def _finish(
        self, key: Key, finetune: FineTune, plan: Plan, line: DecisionLine, postponed_s: float | None
    ) -> float | None:
        failure = await self._delete(finetune, plan, line)
        for event in plan.events if postponed_s is None else ():
            self._poster.post(finetune, event)
        wait_s = plan.requeue_after_s
        if plan.watch_events:
            news_s = self._watch_events(key, finetune)
            # All else that a waiting run waits for comes by a watch.
            wait_s = None if wait_s is None or news_s is None else max(wait_s, news_s)
        else:
            self._events.forget(key)
        asked_s = self._poller.ask(key, plan.ask_progress) if plan.ask_progress is not None else None
        if failure is not None:  # not before: it may last as long as the run, which goes on
            raise failure
        return soonest(wait_s, asked_s, plan.due_in_s, postponed_s, self._changes.due_in_s(key))


def _refused(finetune: FineTune, turn: _Turn, rejection: Rejection) -> bool:
    turn.rejection = turn.rejection or rejection
    if rejection.message == UNANSWERED:  # it may have been carried out
        turn.forget_reads()
    place = (finetune.namespace, finetune.name)
    fields = logs.about(place, finetune.uid, type="refusal", code=rejection.code, reason=rejection.reason)
    logger.warning("%s %s was refused: %s", rejection.kind, rejection.name, sentence(rejection.message), extra=fields)
    return False
