"""One pass over one LoRAFineTune: observe, decide, read live where the plan asks for it and decide once more, apply."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from lora_operator.cluster.api import Api, ApiError
from lora_operator.cluster.apply import RefusedError, Writer
from lora_operator.cluster.child_events import ChildEvents
from lora_operator.cluster.kueue import Kueue
from lora_operator.cluster.observe import Live, is_locked_out, observe, read_live
from lora_operator.cluster.post_events import EventPoster
from lora_operator.cluster.progress_poll import ProgressPoller
from lora_operator.cluster.store import Key, Stores, key_of
from lora_operator.controller import logs
from lora_operator.controller.debounce import Debounce, progress_interval_s
from lora_operator.controller.logs import DecisionLine
from lora_operator.controller.refusals import Refusals
from lora_operator.decide.decide import decide
from lora_operator.decide.run import Run
from lora_operator.decide.trouble import KNOWN_FROM_EVENTS
from lora_operator.decide.verdict import claims_success
from lora_operator.model.conditions import has_just_ended, result_of, state_of
from lora_operator.model.config import OperatorConfig
from lora_operator.model.objects import FineTune, Observed, Plan, Refusal, soonest
from lora_operator.model.wording import sentence

logger = logging.getLogger(__name__)

AT_ONCE_S = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """A decision about to be carried out."""

    key: Key
    run: Run
    plan: Plan

    @property
    def finetune(self) -> FineTune:
        """The resource as it was decided on."""
        return self.run.finetune

    @property
    def changes_status(self) -> bool:
        """Whether another status is to be written."""
        return self.plan.status != self.finetune.status


class Reconciler:
    """Turns what is known of a resource into writes. It holds nothing that a restart would lose."""

    def __init__(
        self,
        *,
        api: Api,
        stores: Stores,
        kueue: Kueue,
        config: OperatorConfig,
        poller: ProgressPoller,
        events: ChildEvents,
        poster: EventPoster,
        refusals: Refusals,
        debounce: Debounce,
        count: Callable[[FineTune, Observed, Mapping[str, Any]], None],
        now: Callable[[], datetime],
    ) -> None:
        self._api = api
        self._stores = stores
        self._kueue = kueue
        self._config = config
        self._poller = poller
        self._events = events
        self._poster = poster
        self._refusals = refusals
        self._debounce = debounce
        self._count = count
        self._now = now
        self._writer = Writer(api, stores, kueue)

    async def reconcile(self, key: Key) -> float | None:
        """Bring the cluster to where the resource wants it; return the seconds until the next look, None for no need.

        Raises `ApiError`, `UnreachableError` or `TryAgainError` where it is to be tried again.
        """
        finetune = self._stores.finetunes.get(key)
        if finetune is None:
            self._forget(key)
            return None
        run = self._observe(key, finetune)
        plan = decide(run)
        if plan.verify:
            live = await read_live(self._stores, self._api, finetune, plan.verify)
            finetune = self._stores.finetunes.get(key)
            if finetune is None:
                return AT_ONCE_S
            run = self._observe(key, finetune, live)
            plan = decide(run)
            if not plan.verify <= live.names:  # the resource names a later attempt, or is another one of that name
                return AT_ONCE_S
        if self._refusals.note_undone(key, plan.patch):
            return AT_ONCE_S
        return await self._apply(Pass(key=key, run=run, plan=plan))

    async def is_locked_out(self, key: Key) -> bool:
        """Whether a 401 is about the operator: a webhook may answer with it, too, about one object."""
        return await is_locked_out(self._api, key)

    def _observe(self, key: Key, finetune: FineTune, live: Live | None = None) -> Run:
        observed = observe(
            self._stores,
            finetune,
            events=self._events.latest(key),
            ask=self._poller.latest,
            kueue=self._kueue.served,
            refusals=self._refusals.standing(key),
            live=live,
        )
        return Run(finetune=finetune, observed=observed, config=self._paced_config(), now=self._now())

    def _paced_config(self) -> OperatorConfig:
        interval_s = progress_interval_s(self._config, len(self._poller))
        same = interval_s == self._config.progress_interval_s
        return self._config if same else replace(self._config, progress_interval_s=interval_s)

    async def _apply(self, turn: Pass) -> float | None:
        """Carry out a plan: changes and creations, then the status that tells of them, then deletions and Events."""
        key, plan = turn.key, turn.plan
        with DecisionLine(turn.finetune, plan) as line:
            if not await self._change_children(turn, line):
                return AT_ONCE_S
            postponed_s, gone = self._postponed_s(turn), self._stores.pods.gone(key, turn.finetune.uid)
            if postponed_s is None and turn.changes_status and not await self._write_status(turn, line):
                return AT_ONCE_S
            failure = await self._delete(turn, line)
            for event in plan.events if postponed_s is None else ():
                self._poster.post(turn.finetune, event)
            wait_s = plan.requeue_after_s
            if plan.watch_events:
                self._watch_events(key, turn.finetune)
                wait_s = None  # a change of the Events wakes it, and all else that it waits for comes by a watch
            else:
                self._events.forget(key)
            asked_s = self._poller.ask(key, plan.ask_progress) if plan.ask_progress is not None else None
            if failure is not None:  # not before: it may last as long as the run, which goes on
                raise failure
            wait_s = soonest(wait_s, asked_s, plan.due_in_s, postponed_s, self._refusals.due_in_s(key))
            line.next_look_s = wait_s
        # What follows the end, such as the time to live of the Job, is decided once the verdict is stored; so is what a
        # run does whose pod is gone, once that is accounted for. And what the server answered to a change may say more
        # of the Job than was known, of which a watch brings no news any more.
        accounted = bool(gone) and postponed_s is None and turn.changes_status
        return AT_ONCE_S if plan.patch or accounted or has_just_ended(turn.finetune, plan.status) else wait_s

    async def _change_children(self, turn: Pass, line: DecisionLine) -> bool:
        """Patch and create; False if all is to be decided anew, since something was refused or is there already."""
        is_new = True
        try:
            for patch in turn.plan.patch:
                await self._writer.patch(turn.finetune, patch)
                self._refusals.taken(turn.key, patch)
                line.wrote("patched", patch.kind, patch.name)
            for manifest in turn.plan.create:
                made = await self._writer.create(turn.finetune, manifest)
                line.wrote("created" if made else "adopted", manifest["kind"], manifest["metadata"]["name"])
                is_new &= made or manifest["kind"] != "Job"
        except RefusedError as error:
            self._refusals.refused(turn.key, error.refusal)
            _log_refusal(turn.finetune, error.refusal)
            return False
        return is_new

    async def _write_status(self, turn: Pass, line: DecisionLine) -> bool:
        """Write the status; False if the resource changed meanwhile and all is to be decided anew."""
        key, status = turn.key, turn.plan.status
        if not await self._writer.write_status(turn.finetune, status):
            return False
        line.wrote_status()
        self._debounce.forget(key)
        self._count(turn.finetune, turn.run.observed, status)
        # The status accounts for what is gone; a claim of success, and Jobs, are kept until the verdict.
        if result_of(status):
            self._poller.forget(pod.uid for pod in turn.run.observed.pods)
            self._stores.forget_gone(key)
        else:
            self._stores.pods.forget_gone(key, unless=claims_success)
        return True

    async def _delete(self, turn: Pass, line: DecisionLine) -> ApiError | None:
        """Delete what the plan names; one that is refused keeps no other, least of all a Job that holds GPUs."""
        failure: ApiError | None = None
        for target in turn.plan.delete:
            try:
                await self._writer.delete(turn.finetune, target)
            except ApiError as error:
                failure = failure or error
            else:
                line.wrote("deleted", target.kind, target.name)
        return failure

    def _postponed_s(self, turn: Pass) -> float | None:
        """Seconds that the status and its Events wait; None where they are due.

        It is as after a crash at this point: the next turn finds the same, and writes the same status.
        """
        key = turn.key
        if not turn.changes_status:
            self._debounce.forget(key)
            return None
        if self._needs_events(key, turn.finetune, turn.plan):
            return self._config.pending_check_s  # it is woken once they are read
        return self._debounce.wait_s(key, turn.finetune.status, turn.plan.status) or None

    def _needs_events(self, key: Key, finetune: FineTune, plan: Plan) -> bool:
        """Whether Events that this process has not read yet may be where the stored reason for waiting comes from."""
        if not plan.watch_events or self._events.has_read(key):
            return False
        before, after = state_of(finetune.status), state_of(plan.status)
        return before != after and before in KNOWN_FROM_EVENTS and self._watch_events(key, finetune)

    def _watch_events(self, key: Key, finetune: FineTune) -> bool:
        jobs, pods = self._stores.jobs.of(key, finetune.uid), self._stores.pods.of(key, finetune.uid)
        return self._events.watch(key, jobs, pods)

    def _forget(self, key: Key) -> None:
        """The run is gone."""
        self._stores.forget_gone(key)
        self._events.forget(key)
        self._refusals.forget(key)
        self._debounce.forget(key)


def _log_refusal(finetune: FineTune, refusal: Refusal) -> None:
    fields = logs.about(key_of(finetune), finetune.uid, type="refusal", code=refusal.code, reason=refusal.reason)
    logger.warning("%s %s was refused: %s", refusal.kind, refusal.name, sentence(refusal.message), extra=fields)
