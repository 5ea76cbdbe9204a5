"""One turn of one LoRAFineTune: look, decide, write. It reads the cache, except where a plan asks for more."""

import logging
from collections.abc import Callable
from datetime import datetime
from typing import Protocol

from lora_operator.cluster.api import JOBS, Api
from lora_operator.cluster.cache import Cache, Key
from lora_operator.cluster.carry_out import Creation, TryAgainError, Writer
from lora_operator.cluster.child_events import ChildEvents
from lora_operator.cluster.kueue import Kueue
from lora_operator.cluster.look import list_children, look
from lora_operator.cluster.post_events import EventPoster
from lora_operator.cluster.progress_poll import ProgressPoller
from lora_operator.decision.decide import decide
from lora_operator.running import logs
from lora_operator.running.decision_log import DecisionLine
from lora_operator.running.rivals import Rivals
from lora_operator.running.transitions import Transition, condition, read_transition, result_of
from lora_operator.views.config import OperatorConfig
from lora_operator.views.model import FineTune, Observed, Plan, Rejection
from lora_operator.views.wording import sentence
from lora_trainer.contract.reasons import Reason

logger = logging.getLogger(__name__)

_MOST_ROUNDS = 8
_PATIENCE_FAILURES = 2


class TransitionObserver(Protocol):
    """Whoever counts what happened, after it was written."""

    def observe(self, transition: Transition) -> None:
        """A status was written that differs from the one before."""


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
        observer: TransitionObserver,
        now: Callable[[], datetime],
    ) -> None:
        self._api = api
        self._cache = cache
        self._kueue = kueue
        self._config = config
        self._poller = poller
        self._events = events
        self._poster = poster
        self._observer = observer
        self._now = now
        self._writer = Writer(api, cache, kueue)
        self._rivals = Rivals(now)

    async def reconcile(self, key: Key, *, failures: int = 0) -> float | None:
        """Bring the cluster to where the resource wants it; return the seconds until the next look, None for no need.

        `failures` is how often in a row the turn has failed before. Raises `ApiError`, `UnreachableError` or
        `TryAgainError` where it is to be tried again.
        """
        rejection: Rejection | None = None
        confirmed = current = False
        for _ in range(_MOST_ROUNDS):
            finetune = self._cache.finetunes.get(key)
            if finetune is None:
                self._events.forget(key)
                self._rivals.forget(key)
                return None
            observed = await self._observe(key, finetune, rejection, confirmed=confirmed)
            plan = decide(finetune, observed, self._config, self._now())
            if plan.confirm_absence and not confirmed:
                await list_children(self._cache, self._api, finetune)
                confirmed = True
                continue
            if not confirmed and self._rivals.dispute(key, finetune, plan.status):
                self._events.read_anew(key)
                await list_children(self._cache, self._api, finetune)
                confirmed = True
                continue
            if self._needs_events(key, finetune, plan):
                self._watch_events(key, finetune)
                continue
            if plan.patch and not current:
                # The wish may have changed again: a watch that lags would undo what a second operator did, in turns.
                await self._writer.refresh(finetune)
                current = True
                if self._cache.finetunes.get(key) is not finetune:
                    continue
            with DecisionLine(finetune, plan) as line:
                if rejection is None:
                    creation = await self._create_and_patch(
                        finetune, plan, line, patient=failures >= _PATIENCE_FAILURES
                    )
                    rejection = creation.rejection
                    if rejection is not None:
                        _log_rejection(finetune, rejection)
                    if rejection is not None or creation.adopted:
                        continue
                if not await self._tell(finetune, observed, plan, line):
                    rejection, confirmed, current = None, False, False
                    continue
                wait_s = line.next_look_s = await self._finish(key, finetune, plan, line)
            just_ended = result_of(plan.status) and not result_of(finetune.status)
            # What follows the end, such as the time to live of the Job, is decided once the verdict is stored.
            return 0.0 if just_ended else wait_s
        raise TryAgainError("the resource changes faster than its status can be written")

    async def _observe(self, key: Key, finetune: FineTune, rejection: Rejection | None, *, confirmed: bool) -> Observed:
        events = await self._events.latest(key)
        told = self._poller.latest
        return look(
            self._cache,
            finetune,
            events=events,
            told=told,
            kueue=self._kueue.served,
            rejection=rejection,
            confirmed=confirmed,
        )

    def _needs_events(self, key: Key, finetune: FineTune, plan: Plan) -> bool:
        """Whether Events that this process has not read yet may be what the stored reason for waiting was told by."""
        if not plan.watch_events or self._events.has_read(key):
            return False
        before, after = (condition(status, "Complete").get("reason") for status in (finetune.status, plan.status))
        return before not in (after, Reason.PENDING)

    def _watch_events(self, key: Key, finetune: FineTune) -> float | None:
        jobs, pods = self._cache.jobs.of(key, finetune.uid), self._cache.pods.of(key, finetune.uid)
        return self._events.watch(key, jobs, pods)

    async def _create_and_patch(self, finetune: FineTune, plan: Plan, line: DecisionLine, *, patient: bool) -> Creation:
        """Carry out the first half of a plan, up to the first refusal. An adopted Job tells more than the plan knew."""
        adopted = False
        for manifest in plan.create:
            creation = await self._writer.create(finetune, manifest, patient=patient)
            if creation.rejection is not None:
                return creation
            line.wrote("adopted" if creation.adopted else "created", manifest["kind"], manifest["metadata"]["name"])
            adopted |= creation.adopted and manifest["kind"] == JOBS.kind
        for patch in plan.patch:
            rejection = await self._writer.patch(finetune, patch)
            if rejection is not None:
                return Creation(rejection=rejection)
            line.wrote("patched", patch.kind, patch.name)
        return Creation(adopted=adopted)

    async def _tell(self, finetune: FineTune, observed: Observed, plan: Plan, line: DecisionLine) -> bool:
        """Write the status if it changed; False if the resource changed meanwhile and all is to be decided anew."""
        if self._writer.is_written(finetune, plan.status):
            return True
        if not await self._writer.write_status(finetune, plan.status):
            return False
        line.wrote_status()
        key = Key(finetune.namespace, finetune.name)
        self._rivals.wrote(key, finetune, self._cache.finetunes.get(key))
        self._observer.observe(read_transition(finetune, observed, plan.status))
        return True

    async def _finish(self, key: Key, finetune: FineTune, plan: Plan, line: DecisionLine) -> float | None:
        for target in plan.delete:
            await self._writer.delete(finetune, target)
            line.wrote("deleted", target.kind, target.name)
        for event in plan.events:
            self._poster.post(finetune, event)
        wait_s = plan.requeue_after_s
        if plan.watch_events:
            news_s = self._watch_events(key, finetune)
            # All else that a waiting run waits for comes by a watch.
            wait_s = None if wait_s is None or news_s is None else max(wait_s, news_s)
        else:
            self._events.forget(key)
        if plan.ask_progress is not None:
            due_s = self._poller.ask(key, plan.ask_progress)
            wait_s = due_s if wait_s is None else min(wait_s, due_s)
        if plan.due_in_s is not None:
            wait_s = plan.due_in_s if wait_s is None else min(wait_s, plan.due_in_s)
        return wait_s


def _log_rejection(finetune: FineTune, rejection: Rejection) -> None:
    place = (finetune.namespace, finetune.name)
    fields = logs.about(place, finetune.uid, type="refusal", code=rejection.code, reason=rejection.reason)
    logger.warning("%s %s was refused: %s", rejection.kind, rejection.name, sentence(rejection.message), extra=fields)
