"""Looking at the children of one LoRAFineTune: what `decide` is given, for the operator's turns and for `explain`."""

from collections.abc import Awaitable, Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from lora_operator.cluster.api import FINETUNES, JOBS, LEAST_IN_CHUNK, PODS, Api, ApiError, Object, UnreachableError
from lora_operator.cluster.cache import Cache, Key, key_of
from lora_operator.views.jobs import ending_of, is_of
from lora_operator.views.model import Answer, EventView, FineTune, JobView, Observed, PodView, Rejection
from lora_operator.views.names import CONTROLLER_UID_LABEL, JOB_NAME_LABEL, PREFLIGHT, TRAIN, UID_LABEL, job_name
from lora_operator.views.observe import owner_of
from lora_operator.views.pods import has_ended, ignored_by_job, is_running
from lora_operator.views.wording import integer_of

# Of a run, as anyone who may create pods can label thousands as a run's. A Job of 64 nodes, whose failed pods stay, has
# more after eight rounds; what is older is counted by then.
MOST_PODS = 512
# Of a run: it has two or three, but anyone who may create Jobs can make thousands that are a run's by their name and
# controller reference, each of which may be read, and deleted, in a turn.
MOST_JOBS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a live read found of a run: by name the uid by which the cache is to know each Job, empty where it is to
    know none, and the uids of the pods."""

    jobs: Mapping[str, str]
    pods: frozenset[str]

    def is_in(self, cache: Cache, finetune: FineTune) -> bool:
        """Whether the cache still knows all of it: a watch that reports a lost label as a deletion, while this was read
        or since, has dropped what is there."""
        key, uid = key_of(finetune), finetune.uid
        jobs = (cache.jobs.uid_at(Key(key.namespace, name)) == job_uid for name, job_uid in self.jobs.items())
        pods = {pod.uid for pod in (*cache.pods.of(key, uid), *cache.pods.tombstones(key, uid))}
        return all(jobs) and self.pods <= pods


def look(
    cache: Cache,
    finetune: FineTune,
    *,
    events: tuple[EventView, ...],
    ask: Callable[[Iterable[PodView]], Answer],
    kueue: bool = False,
    rejection: Rejection | None = None,
) -> Observed:
    """What the cache holds of a resource's children, with their Events and what running pods have answered.

    `kueue`: the cluster has Kueue, and the cache follows its Workloads.
    """
    key, uid = key_of(finetune), finetune.uid
    all_jobs, former_jobs = cache.jobs.of(key, uid), cache.jobs.tombstones(key, uid)
    jobs = _most_telling_jobs(finetune, all_jobs)
    known = (*cache.pods.of(key, uid), *cache.pods.tombstones(key, uid))
    pods = _most_telling(known, (*jobs, *former_jobs))
    # Of running pods alone: what a pod said before it failed is not what its successor does.
    answer = ask(pod for pod in pods if is_running(pod))
    return Observed(
        jobs=jobs,
        jobs_left_out=len(all_jobs) - len(jobs),
        former_jobs=former_jobs,
        pods=pods,
        pods_left_out=len(known) - len(pods),
        kueue=kueue,
        workloads=cache.workloads.of(key, uid),
        events=events,
        progress=answer.progress,
        asked=answer.asked,
        rejection=rejection,
    )


def _most_telling_jobs(finetune: FineTune, jobs: tuple[JobView, ...]) -> tuple[JobView, ...]:
    """At most `MOST_JOBS` of a run's Jobs: first those that it must have, then those that go on, newer ones first."""
    if len(jobs) <= MOST_JOBS:
        return jobs
    attempt = integer_of(finetune.status.get("attempt")) or 0
    due = {job_name(finetune.name, finetune.uid, n, s) for n in (1, attempt, attempt + 1) for s in (TRAIN, PREFLIGHT)}

    def rank(job: JobView) -> tuple[bool, bool, bool, bool, datetime]:
        return job.name in due, is_of(finetune, job), not job.deleting, ending_of(job) is None, job.created_at

    return tuple(sorted(jobs, key=rank, reverse=True)[:MOST_JOBS])


def _most_telling(pods: tuple[PodView, ...], jobs: Iterable[JobView]) -> tuple[PodView, ...]:
    """At most `MOST_PODS` of a run's pods: first those of its Jobs, then those of any other, newer ones first."""
    if len(pods) <= MOST_PODS:
        return pods
    own = {job.uid for job in jobs}

    def rank(pod: PodView) -> tuple[bool, bool, datetime]:
        return pod.job_uid in own, bool(pod.job_uid), pod.created_at

    return tuple(sorted(pods, key=rank, reverse=True)[:MOST_PODS])


async def read_live(
    cache: Cache, api: Api, finetune: FineTune, job_names: Iterable[str], *, resource: bool = True, pods: bool = True
) -> Found:
    """Read these Jobs of a resource and, with `pods`, their pods from the API server into the cache, and with
    `resource` that itself.

    Jobs are read by name and pods by the Job controller's own labels, so that nobody hides one by taking ours off. A
    list of pods, for which the API server goes over all of a namespace, is spared where it could show nothing new.
    Raises `ApiError` or `UnreachableError`.
    """
    job_names = tuple(job_names)
    if resource:
        await read_finetune(cache, api, finetune)
    found, strangers, listed = {}, set[str](), set[str]()
    for name in job_names:
        found[name], stranger = await _read_job(cache, api, finetune, name)
        strangers |= {stranger} - {""}
    if pods and not _knows_all_pods(cache, finetune, job_names):
        listed = await _read_pods(cache, api, finetune, job_names, strangers)
    return Found(jobs=found, pods=frozenset(listed))


def _knows_all_pods(cache: Cache, finetune: FineTune, job_names: tuple[str, ...]) -> bool:
    """Whether each of these Jobs has ended, and the end of each pod that it counts is known."""
    key = key_of(finetune)
    jobs = {job.name: job for job in cache.jobs.of(key, finetune.uid)}
    pods = (*cache.pods.of(key, finetune.uid), *cache.pods.tombstones(key, finetune.uid))

    def is_known(job: JobView | None) -> bool:
        if job is None or ending_of(job) is None:
            return False
        own = [pod for pod in pods if pod.job_uid == job.uid]
        # One that the Job leaves out of its count must not stand for one that it counts.
        counted = [pod for pod in own if not ignored_by_job(pod)]
        succeeded = sum(pod.phase == "Succeeded" for pod in counted)
        known = succeeded >= job.succeeded and len(counted) - succeeded >= job.failed
        return known and all(map(has_ended, own))

    return all(is_known(jobs.get(name)) for name in job_names)


async def read_finetune(cache: Cache, api: Api, finetune: FineTune) -> None:
    """Read the resource anew into the cache. Raises `ApiError` or `UnreachableError`."""
    stored = await _get(api.get(FINETUNES, finetune.namespace, finetune.name))
    if stored is None:
        cache.finetunes.mark_deleted(key_of(finetune), finetune.uid)
    else:
        cache.finetunes.put(stored)


async def is_locked_out(api: Api, key: Key) -> bool:
    """Whether the API server refuses the operator's credentials, as a read shows, of which no webhook is asked."""
    try:
        await api.get(FINETUNES, key.namespace, key.name)
    except ApiError as error:
        return error.code == 401
    except UnreachableError:
        return False
    return False


async def _read_job(cache: Cache, api: Api, finetune: FineTune, name: str) -> tuple[str, str]:
    """Read a Job into the cache; the uid by which it is to be known there, and that of one that somebody else made by
    this name. Each is empty where there is none."""
    place = Key(finetune.namespace, name)
    uid, before = cache.jobs.uid_at(place), cache.jobs.version
    stored = await _get(api.get(JOBS, finetune.namespace, name))
    if stored is None:
        cache.jobs.mark_deleted(place, uid)
        return "", ""
    cache.jobs.put(stored, as_of=before)
    uid, owner = str(stored["metadata"]["uid"]), owner_of(stored)
    is_ours = finetune.uid in {owner[1], (stored["metadata"].get("labels") or {}).get(UID_LABEL)}
    # Somebody else's is none to the cache, or another run's, whatever its labels say.
    known = uid if owner == (finetune.name, finetune.uid) else cache.jobs.uid_at(place)
    return known, "" if is_ours else uid


async def _read_pods(
    cache: Cache, api: Api, finetune: FineTune, job_names: tuple[str, ...], strangers: Container[str]
) -> set[str]:
    """The uids of the pods. A Job's carry its uid, or it would let go of them. Of a Job that is gone only the name may
    be known, which a stranger's may have by now."""
    key = key_of(finetune)
    uids = {job.name: job.uid for job in cache.jobs.of(key, finetune.uid) if job.name in job_names}
    there, gone = set(uids.values()), set(job_names) - uids.keys()
    found = set[str]()
    if there:
        found, version = await _take_pods(cache, api, finetune, _selector(CONTROLLER_UID_LABEL, there))
        cache.pods.keep_only(key, finetune.uid, found, version, lambda pod: pod.job_uid in there)
    if gone:
        listed, version = await _take_pods(cache, api, finetune, _selector(JOB_NAME_LABEL, gone), strangers)
        # Marks of a forged pod may contradict each other: what the first list holds is not dropped for the second.
        found |= listed
        cache.pods.keep_only(key, finetune.uid, found, version, lambda pod: pod.job_name in gone)
    return found


async def _take_pods(
    cache: Cache, api: Api, finetune: FineTune, selector: str, strangers: Container[str] = ()
) -> tuple[set[str], str]:
    """Take in pods chunk by chunk, as there may be any number and each may be large; their uids, and the version."""
    listed, version = set[str](), ""
    chunks = api.list_chunks(PODS, finetune.namespace, {"labelSelector": selector}, most=LEAST_IN_CHUNK)
    async for chunk in chunks:
        version = chunk.version
        for pod in chunk.documents:
            metadata = pod["metadata"]
            if metadata["labels"].get(CONTROLLER_UID_LABEL, "") not in strangers:
                listed.add(str(metadata.get("uid", "")))
                cache.pods.put(pod, (finetune.name, finetune.uid), as_of=version)
    return listed, version


def _selector(label: str, values: Iterable[str]) -> str:
    return f"{label} in ({','.join(sorted(values))})"


async def _get(request: Awaitable[Object]) -> Object | None:
    """The object; None where it does not exist."""
    try:
        return await request
    except ApiError as error:
        if error.code != 404:
            raise
        return None
