"""Of pods that train together: which one ended since another did, and which one waited for another in vain."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence, Set
from functools import cached_property

from lora_operator.decision.proof import claims_success
from lora_operator.views.conditions import Finding
from lora_operator.views.model import JobView, PodView
from lora_operator.views.pods import failure_of, has_ended, newest_first, summary_of, was_disrupted
from lora_trainer.contract.exit_codes import FINAL, ExitCode
from lora_trainer.contract.reasons import Reason

# A node has one pod of a Job at a time: those that one of another node met are its last, and in an odd case a few more.
_MOST_MET = 4


class PodEnd:
    """A pod and how it ended, if it has: read when it is asked for, and once, as many others may ask."""

    def __init__(self, pod: PodView) -> None:
        self.pod = pod
        self.index = pod.index
        self.made_at = pod.created_at
        self.started_at = pod.trainer.started_at
        self.finished_at = pod.trainer.finished_at

    @cached_property
    def has_ended(self) -> bool:
        """Whether the trainer has stopped for good."""
        return has_ended(self.pod)

    @cached_property
    def was_asked_to_stop(self) -> bool:
        """Whether the trainer ended since it was asked to."""
        return self.pod.trainer.exit_code == ExitCode.TERMINATED

    @cached_property
    def failure(self) -> Finding | None:
        """How the pod failed; None for one that lives or ended well."""
        return failure_of(self.pod)

    @cached_property
    def ends_its_job(self) -> bool:
        """Whether the Job ends with this pod: it did the work, or failed for good."""
        return self.claims_success or self.pod.trainer.exit_code in FINAL

    @cached_property
    def claims_success(self) -> bool:
        """Whether the pod left the summary of a verified adapter."""
        return claims_success(self.pod)

    @cached_property
    def lost_its_node(self) -> bool:
        """Whether the cluster or the node took the pod away, which its trainer may not have said to its peers."""
        return was_disrupted(self.pod) or (self.failure is not None and self.failure.reason is Reason.NODE_LOST)

    @cached_property
    def stood_still(self) -> bool:
        """Whether the trainer ended since its training stood still, as one does that waits for a peer."""
        return self.failure is not None and self.failure.reason is Reason.STALLED and not self.lost_its_node

    @cached_property
    def is_consequence(self) -> bool:
        """Whether the pod ended because another did: its peer is gone, or one that was asked to stop asked it."""
        if self.failure is None or was_disrupted(self.pod):
            return False
        asked_by_a_peer = self.was_asked_to_stop and not self.pod.deleting
        return self.failure.reason is Reason.PEER_FAILED or asked_by_a_peer

    @cached_property
    def met_the_end_of_its_round(self) -> bool:
        """Whether the trainer ended since another node had ended their round, as one does whose pod was made anew."""
        summary = summary_of(self.pod)
        return self.is_consequence and summary is not None and summary.round_over is True

    @cached_property
    def is_cause(self) -> bool:
        """Whether others may have ended because of this pod."""
        return (self.failure is not None and not self.is_consequence) or self.claims_success


class Rounds:
    """The pods of a run of so many nodes by the Job that counts them, and the run's Jobs by uid.

    Anyone who may create pods can make hundreds that are the run's by their labels and their controller. So nothing
    here goes over all pods for each pod: its peers are a few of each of the run's other nodes, found once, and a pod
    that no Job counts, or that says that it is of a node beyond these, is nobody's peer.
    """

    def __init__(self, pods: Iterable[PodView], jobs: Iterable[JobView] = (), *, nodes: int) -> None:
        self._ends = [PodEnd(pod) for pod in newest_first(pods)]
        self._jobs = {job.uid: job for job in jobs}
        self._of_job = defaultdict[str, list[PodEnd]](list)
        self._nodes = defaultdict[str, defaultdict[int, list[PodEnd]]](lambda: defaultdict(list))
        for end in self.counted_by_a_job():
            self._of_job[end.pod.job_uid].append(end)
            if end.index < nodes:
                self._nodes[end.pod.job_uid][end.index].append(end)
        self._ending: dict[str, bool] = {}
        self._peers: dict[PodEnd, list[PodEnd]] = {}

    def __iter__(self) -> Iterator[PodEnd]:
        """The pods, newest first."""
        return iter(self._ends)

    def counted_by_a_job(self) -> list[PodEnd]:
        """Those that a Job counts, in the order in which they were made."""
        return [end for end in reversed(self._ends) if end.pod.job_uid]

    def of(self, job: JobView) -> list[PodEnd]:
        """Those that this Job counts."""
        return self._of_job.get(job.uid, [])

    def job_of(self, pod: PodView) -> JobView | None:
        """The Job that counts the pod; None where it is gone."""
        return self._jobs.get(pod.job_uid)

    def are_to_end(self, job_uid: str) -> bool:
        """Whether a pod of this Job has ended it, which the Job may not say yet."""
        if job_uid not in self._ending:
            self._ending[job_uid] = any(end.ends_its_job for end in self._of_job.get(job_uid, ()))
        return self._ending[job_uid]

    def waited_in_vain(self, end: PodEnd) -> bool:
        """Whether the pod ended since one of its peers had not started."""
        return end.is_consequence and any(_was_too_late(peer, end) for peer in self.peers(end))

    def peers(self, end: PodEnd) -> list[PodEnd]:
        """Pods of other nodes that were there when this one was; of a node that it met, not the pod that is to come."""
        if end not in self._peers:
            nodes = self._nodes.get(end.pod.job_uid, {}).items()
            self._peers[end] = [peer for index, pods in nodes if index != end.index for peer in _met(end, pods)]
        return self._peers[end]


def _met(end: PodEnd, others: Sequence[PodEnd]) -> list[PodEnd]:
    """Of a node's pods, oldest first, the last that were there when this one was."""
    made_at, finished_at = end.made_at, end.finished_at
    until = len(others) if finished_at is None else bisect_right(others, finished_at, key=lambda other: other.made_at)
    last = others[max(0, until - _MOST_MET) : until]
    there = [other for other in last if other.finished_at is None or made_at <= other.finished_at]
    return [other for other in there if not _was_too_late(other, end)] or there


def waits_for_peers(end: PodEnd, peers: Sequence[PodEnd]) -> bool:
    """Whether the pod that is to blame may yet be known: this one ended because another did."""
    if not end.is_consequence or end.met_the_end_of_its_round:
        return False
    known = any(peer.is_cause or _was_too_late(peer, end) for peer in peers)
    return not known and not all(peer.has_ended for peer in peers)


def follows_from_a_peer(end: PodEnd, peers: Sequence[PodEnd]) -> bool:
    """Whether another pod of the same round is counted in this one's place, or was waited for and is none's fault.

    A round is ended after its cause: the lost pod was counted when it went, and may be known no more.
    """
    if end.met_the_end_of_its_round or any(_stood_still_without(end, peer) for peer in peers):
        return True
    if not end.is_consequence:
        return False
    return any(
        peer.is_cause or _was_too_late(peer, end) or (peer.is_consequence and peer.index < end.index) for peer in peers
    )


def is_counted_with_a_peer(end: PodEnd, peers: Iterable[PodEnd], counted: Set[str]) -> bool:
    """Whether the round has its cause already: where each node lost the network, one retry follows for all."""
    causes = (peer for peer in peers if peer.is_cause and not _stood_still_without(peer, end))
    return any(cause.pod.uid in counted for cause in causes)


def _stood_still_without(end: PodEnd, peer: PodEnd) -> bool:
    """Whether the pod may have stood still since its peer's node was gone: where that lost its power, nothing else says
    so to those that wait for it. The lost pod may be known no more, and its successor not have started."""
    return end.stood_still and (peer.lost_its_node or _was_too_late(peer, end))


def _was_too_late(peer: PodEnd, end: PodEnd) -> bool:
    """Whether the pod ended, other than asked to, before its peer had started: it waited for that in vain."""
    began, ended = peer.started_at, end.finished_at
    late = not peer.has_ended if began is None else ended is not None and ended < began
    return late and not end.was_asked_to_stop
