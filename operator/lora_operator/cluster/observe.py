"""What is known of one LoRAFineTune's children: from the stores that watches feed and, where a plan asks, live."""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from lora_operator.cluster.api import FINETUNES, JOBS, LEAST_IN_CHUNK, PODS, Api, ApiError, Object, UnreachableError
from lora_operator.cluster.store import Key, Stores, is_older, key_of
from lora_operator.model.jobs import ending_of, is_of
from lora_operator.model.names import CONTROLLER_UID_LABEL, JOB_NAME_LABEL
from lora_operator.model.objects import Answer, EventView, FineTune, JobView, Observed, PodView, Refusal
from lora_operator.model.observe import owner_of, parse_job, parse_pod
from lora_operator.model.pods import has_ended, is_running

# Of a run, as anyone who may create pods can label thousands as a run's. A Job of 64 nodes, whose failed pods stay, has
# more after eight rounds.
MOST_PODS = 512
# Of a run: it has two or three, but anyone who may create Jobs can make thousands that are a run's by their name and
# controller reference, each of which may be read, and deleted, in a turn.
MOST_JOBS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """What there is of a run: those Jobs that were asked for by `names` and exist, and the pods that carry their names.

    A watch that reports a lost label as a deletion may drop from the stores what was just read: so a decision that
    needs a live read is made on this, and not on the stores.
    """

    names: frozenset[str]
    jobs: tuple[JobView, ...]
    pods: tuple[PodView, ...]


def observe(
    stores: Stores,
    finetune: FineTune,
    *,
    events: tuple[EventView, ...],
    ask: Callable[[Iterable[PodView]], Answer],
    kueue: bool = False,
    refusals: tuple[Refusal, ...] = (),
    live: Live | None = None,
) -> Observed:
    """What is known of a resource's children, with their Events and what running pods have answered.

    `kueue`: the cluster has Kueue, and the stores follow its Workloads.
    """
    key, uid = key_of(finetune), finetune.uid
    former_jobs, known = stores.jobs.gone(key, uid), stores.pods.of(key, uid)
    jobs, gone = stores.jobs.of(key, uid), stores.pods.gone(key, uid)
    if live is not None:
        # A pod that has ended and is gone since says how it ended, as it does where a watch reports that.
        jobs, gone, known = live.jobs, (*gone, *filter(has_ended, known)), live.pods
    jobs = _most_telling_jobs(finetune, jobs)
    by_uid = {pod.uid: pod for pod in (*gone, *known)}
    pods = _most_telling(tuple(by_uid.values()), (*jobs, *former_jobs))
    # Of running pods alone: what a pod said before it failed is not what its successor does.
    answer = ask(pod for pod in pods if is_running(pod))
    return Observed(
        jobs=jobs,
        former_jobs=former_jobs,
        pods=pods,
        kueue=kueue,
        workloads=stores.workloads.of(key, uid),
        events=events,
        progress=answer.progress,
        asked=answer.asked,
        refusals=refusals,
    )


def _most_telling_jobs(finetune: FineTune, jobs: tuple[JobView, ...]) -> tuple[JobView, ...]:
    """At most `MOST_JOBS` of a run's Jobs: first those that have the name that it gives and go on, newer ones first."""
    if len(jobs) <= MOST_JOBS:
        return jobs

    def rank(job: JobView) -> tuple[bool, bool, bool, datetime]:
        return is_of(finetune, job), not job.deleting, ending_of(job) is None, job.created_at

    return tuple(sorted(jobs, key=rank, reverse=True)[:MOST_JOBS])


def _most_telling(pods: tuple[PodView, ...], jobs: Iterable[JobView]) -> tuple[PodView, ...]:
    """At most `MOST_PODS` of a run's pods: first those of its Jobs, then those of any other, newer ones first."""
    if len(pods) <= MOST_PODS:
        return pods
    own = {job.uid for job in jobs}

    def rank(pod: PodView) -> tuple[bool, bool, datetime]:
        return pod.job_uid in own, bool(pod.job_uid), pod.created_at

    return tuple(sorted(pods, key=rank, reverse=True)[:MOST_PODS])


async def read_live(stores: Stores, api: Api, finetune: FineTune, names: frozenset[str]) -> Live:
    """Read the resource into its store, and these Jobs of it with their pods, which the stores may not know.

    Jobs are read by name and pods by the Job controller's own labels, so that nobody hides one by taking ours off: a
    Job's pods carry its uid, or it would let go of them, and of a Job that is gone only the name is known.
    Raises `ApiError` or `UnreachableError`.
    """
    await read_finetune(stores, api, finetune)
    jobs, strangers = list[JobView](), set[str]()
    for name in sorted(names):
        place = Key(finetune.namespace, name)
        uid = stores.jobs.uid_at(place)
        stored = await _get(api.get(JOBS, finetune.namespace, name))
        if stored is None:
            stores.jobs.drop(place, uid)
            continue
        stores.jobs.put(stored)
        if owner_of(stored) == (finetune.name, finetune.uid):
            jobs.append(parse_job(stored))
        else:
            strangers.add(str(stored["metadata"]["uid"]))
    there, gone = {job.name: job.uid for job in jobs}, names - {job.name for job in jobs}
    pods = dict[str, PodView]()
    for label, values in ((CONTROLLER_UID_LABEL, set(there.values())), (JOB_NAME_LABEL, gone)):
        if values:
            query = {"labelSelector": f"{label} in ({','.join(sorted(values))})"}
            # Anyone may create pods with such a label, and each may be large.
            async for chunk in api.list_chunks(PODS, finetune.namespace, query, most=LEAST_IN_CHUNK):
                for document in chunk.documents:
                    stores.pods.put(document)
                    pod = parse_pod(document)
                    if pod.controller_uid not in strangers:
                        pods[pod.uid] = pod
    return Live(names=names, jobs=tuple(jobs), pods=tuple(pods.values()))


async def read_finetune(stores: Stores, api: Api, finetune: FineTune) -> None:
    """Read the resource anew into its store. Raises `ApiError` or `UnreachableError`.

    An answer is never older than what was known when it was asked for, but after etcd was restored from a backup: then
    it replaces that, so that no verdict of a history that there is no more stops a Job.
    """
    known = stores.finetunes.version_at(key_of(finetune))
    stored = await _get(api.get(FINETUNES, finetune.namespace, finetune.name))
    if stored is None:
        stores.finetunes.drop(key_of(finetune), finetune.uid)
    else:
        stores.finetunes.take_answer(stored, replaces=is_older(stored["metadata"]["resourceVersion"], known))


async def is_locked_out(api: Api, key: Key) -> bool:
    """Whether the API server refuses the operator's credentials, as a read shows, of which no webhook is asked."""
    try:
        await api.get(FINETUNES, key.namespace, key.name)
    except ApiError as error:
        return error.code == 401
    except UnreachableError:
        return False
    return False


async def _get(request: Awaitable[Object]) -> Object | None:
    """The object; None where it does not exist."""
    try:
        return await request
    except ApiError as error:
        if error.code != 404:
            raise
        return None
