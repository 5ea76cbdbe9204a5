"""One LoRAFineTune among others of the same stage: many rows share one operator and one namespace."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from tests.component.documents import Object
from tests.component.operator_process import OperatorProcess
from tests.component.patience import eventually
from tests.component.stage import Stage

from lora_operator.model.names import JOB_NAME_LABEL, NAME_LABEL, TRAIN, place_of
from lora_operator.model.observe import parse_pod
from lora_operator.model.pods import has_ended

LOOKS = 'lora_operator_reconcile_total{result="success"}'
# A state that is over with the next pod: in the 10 s in which a Job retries, a busy machine may not come to look.
SEEN_S = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The run by that name, what the user sees of it, and its Jobs and pods."""

    stage: Stage
    name: str

    # -- what the user does and sees

    @property
    def status(self) -> Object:
        """The whole status."""
        status: Object = self.stage.finetune(self.name).get("status", {})
        return status

    def change(self, **spec: Any) -> None:
        """Change fields of the spec."""
        self.stage.change(self.name, **spec)

    def condition(self, kind: str) -> Object:
        """One condition."""
        return self.stage.condition(kind, self.name)

    def wait(self, kind: str, status: str = "", reason: str = "") -> Object:
        """Wait for a condition with this status and reason."""
        return self.stage.wait_condition(kind, status=status, reason=reason, name=self.name)

    def wait_said(self, kind: str, text: str, *, reason: str = "") -> str:
        """Wait until a condition says this, for this reason; its whole sentence."""

        def look() -> str | None:
            seen = self.condition(kind)
            good = text in seen.get("message", "") and reason in ("", seen["reason"])
            return str(seen["message"]) if good else None

        return eventually(look, f"{self.name}'s {kind} says {text!r}")

    def wait_state(self, reason: str) -> str:
        """Wait for the STATE of `kubectl get`; its sentence."""
        return str(self.wait("Complete", reason=reason)["message"])

    def wait_event(self, reason: str, kind: str = "Warning") -> str:
        """Wait for an Event about this run; its sentence."""

        def look() -> str | None:
            found = (e for e in self.stage.objects("events") if e["involvedObject"]["name"] == self.name)
            return next((str(e["message"]) for e in found if (e["type"], e["reason"]) == (kind, reason)), None)

        return eventually(look, f"{self.name} has an Event {reason}")

    def wait_told(self) -> None:
        """Wait for the Event of the state that it is in: they are posted one by one, some time after the status."""

        def look() -> bool:
            events = [e for e in self.stage.objects("events") if e["involvedObject"]["name"] == self.name]
            # Those of one operator have names that grow.
            newest = max(events, key=lambda event: str(event["metadata"]["name"]), default={})
            return bool(newest.get("reason") == self.condition("Complete")["reason"])

        eventually(look, f"the last Event about {self.name} is that of its state")

    def wait_retries(self, **counts: int) -> None:
        """Wait until the status counts these retries, and no others."""

        def look() -> bool:
            said = self.status.get("retries", {})
            return {k: v for k, v in said.items() if isinstance(v, int) and v} == counts

        eventually(look, f"{self.name} counts {counts}, as {self.status.get('retries')} does not")

    def be_looked_at(self, *, writes: bool = True) -> None:
        """Have the operator look at this run anew, and wait until it has; with `writes` that shows in the status.

        Without, it shows in the metrics alone, so it must be the only run of its operator that anything happens to.
        """
        if writes:
            later = {"ttlSecondsAfterFinished": self.stage.finetune(self.name)["metadata"]["generation"] + 10_000}
            self.change(**later)
            eventually(self._has_seen_the_change, f"{self.name} was looked at")
            return
        operator = self.stage.operators[-1]
        for nudge in range(3):
            looked = operator.metric(LOOKS)
            annotations = {"metadata": {"annotations": {"nudge": f"{looked}-{nudge}"}}}
            self.stage.api.patch(self.stage.path("lorafinetunes", self.name), annotations)
            eventually(partial(_more_looks, operator, looked), f"{self.name} was looked at")

    def _has_seen_the_change(self) -> bool:
        now = self.stage.finetune(self.name)
        return bool(now["status"].get("observedGeneration") == now["metadata"]["generation"])

    # -- its children

    def children(self, plural: str, stage: str = TRAIN) -> list[Object]:
        """Its objects of a kind, by their labels."""

        def ours(metadata: Object) -> bool:
            labels = metadata.get("labels", {})
            job = labels.get(JOB_NAME_LABEL, metadata["name"])
            return labels.get(NAME_LABEL) == self.name and place_of(job)[1] == stage

        return [item for item in self.stage.objects(plural) if ours(item["metadata"])]

    @property
    def jobs(self) -> list[Object]:
        """The Jobs that train, also one that has lost its labels or its owner."""

        def ours(metadata: Object) -> bool:
            owned = any(owner["name"] == self.name for owner in metadata.get("ownerReferences", []))
            return owned or metadata.get("labels", {}).get(NAME_LABEL) == self.name

        # The Job of the preflight is named after the attempt, and not numbered.
        trains = (job for job in self.stage.objects("jobs") if attempt_of(job))
        return [job for job in trains if ours(job["metadata"])]

    @property
    def pods(self) -> list[Object]:
        """The pods that train or have trained, by name."""
        return sorted(self.children("pods"), key=lambda pod: str(pod["metadata"]["name"]))

    def job(self, attempt: int = 1) -> Object:
        """Wait for the Job of an attempt."""

        def look() -> Object | None:
            return next((j for j in self.jobs if attempt_of(j) == attempt), None)

        return eventually(look, f"{self.name} has a Job for attempt {attempt}")

    def pod(self, *, other_than: "Object | None" = None) -> Object:
        """Wait for a living pod, not `other_than`."""
        not_this = other_than["metadata"]["uid"] if other_than else ""

        def look() -> Object | None:
            views = ((pod, parse_pod(pod)) for pod in self.pods)
            living = (pod for pod, view in views if not has_ended(view) and not view.deleting)
            return next((pod for pod in living if pod["metadata"]["uid"] != not_this), None)

        return eventually(look, f"{self.name} has a living pod")

    def running_pod(self, *, other_than: "Object | None" = None) -> Object:
        """Wait for a living pod, let its trainer start, and wait until the user sees that."""
        pod = self.pod(other_than=other_than)
        self.stage.run_pod(pod)
        self.wait("PodsReady", "True")
        return pod

    def pods_of_this_moment(self) -> list[str]:
        """The uids of all its pods, to compare with later."""
        return [str(pod["metadata"]["uid"]) for pod in self.pods]


def attempt_of(job: Object) -> int:
    """The attempt whose training Job this is, by its name, as labels can be lost; 0 for another Job."""
    number = str(job["metadata"]["name"]).rpartition("-")[2]
    return int(number) if number.isdecimal() else 0


def _more_looks(operator: OperatorProcess, than: float) -> bool:
    return operator.metric(LOOKS) > than


def begin(stage: Stage, name: str, **spec: Any) -> Run:
    """Create a LoRAFineTune."""
    stage.apply(name, **spec)
    return Run(stage=stage, name=name)


def free_of_claims(**spec: Any) -> Object:
    """A spec whose pods need no PersistentVolumeClaim: only nodes stand between them and running."""
    addresses = {"dataset": {"uri": "hf://acme/chats"}, "output": {"uri": "s3://results/tone"}}
    return {**addresses, **spec}
