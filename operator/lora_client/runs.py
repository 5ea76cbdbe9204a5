"""A run as an object, and where runs are: in a cluster, or on this machine."""

import copy
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from lora_client.cluster.connection import Cluster, Object, connect
from lora_client.cluster.follow import follow
from lora_client.errors import ClientError
from lora_client.output import note
from lora_client.verbs import changing, checking
from lora_client.verbs.ask import conversation
from lora_client.verbs.explaining import explanation
from lora_client.verbs.logs import log_so_far
from lora_client.verbs.pull import pulled
from lora_client.verbs.serve import served
from lora_client.views.answers import Answer
from lora_client.views.applied import ended_before
from lora_client.views.changes import changes_to
from lora_client.views.comparison import compare
from lora_client.views.helper_pod import Need
from lora_client.views.resources import message, result, run_name, state, waiting_for


class Run(Protocol):
    """One run."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def state(self) -> str:
        """What it does, or how it ended."""

    def wait(self, timeout_s: float | None = None) -> "Run":
        """Wait for its success and return it. Raises `ClientError` where it fails, or has not ended in time."""

    def pull(self, folder: Path | str | None = None) -> Path:
        """Copy its adapter into a new folder, digest checked, and return that."""

    def logs(self) -> str:
        """The log of its training so far."""

    def ask(self, question: str, *, gpu: bool = False, most_tokens: int = 64) -> Answer:
        """What the base model and the adapter answer, each in at most so many tokens, on a CPU or on one of the
        run's GPUs."""

    def clone(self, changes: Mapping[str, Any], *, name: str | None = None) -> "Run":
        """Start a new run with changes, as in `{"lora.rank": 32}`; None removes a field. Without a name it gets this
        one's and a number."""

    def suspend(self) -> "Run":
        """Let it save its state and free what it computes on."""

    def resume(self) -> "Run":
        """Let it continue."""

    def explain(self) -> Mapping[str, Any]:
        """Its state, and what its Jobs, pods and queue say."""

    def compare(self, other: "Run") -> Mapping[str, Any]:
        """The settings that differ, and the other's loss less this one's, in nats per token."""

    def serve(self, kind: str = "vllm") -> Sequence[Mapping[str, Any]]:
        """The objects that serve its adapter, for `kubectl apply`; `kind` is vllm or kserve."""


class Runs(Protocol):
    """A place of runs."""

    def start(self, manifest: Mapping[str, Any]) -> Run: ...
    def problems(self, manifest: Mapping[str, Any]) -> tuple[str, ...]: ...
    def get(self, name: str) -> Run: ...
    def all(self) -> Sequence[Run]: ...


class ClusterRuns:
    """Runs of a namespace."""

    def __init__(self, context: str | None, namespace: str | None) -> None:
        self._cluster = connect(context, namespace)
        self._asked = namespace is not None

    def start(self, manifest: Mapping[str, Any]) -> Run:
        """Create it in the namespace that it names, else in this one.

        Raises `ClientError`, also where a run of its name has failed before; one that has succeeded is returned.
        """
        cluster, manifest = self._placed(manifest)
        checking.require_good(cluster, manifest)
        stored = checking.apply(cluster, manifest)
        ended = ended_before(stored, datetime.now(UTC))
        if result(stored) == "failed":
            raise ClientError(ended)
        if ended:
            note(ended)
        return ClusterRun(cluster, stored)

    def problems(self, manifest: Mapping[str, Any]) -> tuple[str, ...]:
        """By the server's dry run."""
        cluster, manifest = self._placed(manifest)
        return checking.check(cluster, manifest).problems

    def _placed(self, manifest: Mapping[str, Any]) -> tuple[Cluster, dict[str, Any]]:
        """The manifest, and the cluster with its namespace: a copy, since other runs stay in theirs."""
        cluster = copy.copy(self._cluster)
        return cluster, checking.placed(cluster, manifest, asked=self._asked)

    def get(self, name: str) -> Run:
        """Raises `ClientError` for none."""
        return ClusterRun(self._cluster, self._cluster.get("lorafinetunes", run_name(name)))

    def all(self) -> Sequence[Run]:
        """By name."""
        return [ClusterRun(self._cluster, run) for run in self._cluster.items("lorafinetunes")]


class ClusterRun:
    """A LoRAFineTune; `resource` is as it was when it was last read."""

    def __init__(self, cluster: Cluster, resource: Mapping[str, Any]) -> None:
        self._cluster = cluster
        self.resource: Object = dict(resource)

    def __repr__(self) -> str:
        return f"<Run {self._cluster.namespace}/{self.name}: {self.state}>"

    @property
    def name(self) -> str:
        """See `Run`."""
        return str(self.resource["metadata"]["name"])

    @property
    def state(self) -> str:
        """See `Run`."""
        return state(self.resource)

    @property
    def status(self) -> Mapping[str, Any]:
        """Its status as it was when it was last read."""
        return self.resource.get("status") or {}

    def refresh(self) -> "ClusterRun":
        """Read it anew."""
        self.resource = self._cluster.get("lorafinetunes", self.name)
        return self

    def wait(self, timeout_s: float | None = None) -> "ClusterRun":
        """See `Run`."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        pause_s, said = self._cluster.least_pause_s, ""
        try:
            for seen in follow(self._cluster, self.name, note):
                self.resource = seen or self.resource
                if result(self.resource):
                    break
                waits = waiting_for(self.resource, datetime.now(UTC))
                if end is not None and time.monotonic() > end:
                    raise ClientError(f"{self.name} has not ended within {timeout_s:g} s: it is {waits or self.state}")
                if waits not in ("", said):
                    note(f"{self.name}: {waits}")
                said = waits
        finally:
            self._cluster.least_pause_s = pause_s
        if result(self.resource) == "failed":
            raise ClientError(f"{self.name} failed ({self.state}): {message(self.resource)}")
        return self

    def suspend(self) -> "ClusterRun":
        """Let it save its state and free its GPUs."""
        self.resource = changing.patch_suspended(self._cluster, self.name, suspend=True)
        return self

    def resume(self) -> "ClusterRun":
        """Let it continue."""
        self.resource = changing.patch_suspended(self._cluster, self.name, suspend=False)
        return self

    def pull(self, folder: Path | str | None = None) -> Path:
        """See `Run`."""
        return pulled(self._cluster, self.refresh().resource, None if folder is None else str(folder))

    def ask(self, question: str, *, gpu: bool = False, most_tokens: int = 64) -> Answer:
        """See `Run`."""
        need = Need(verb="ask", model=True, gpu=gpu)
        with conversation(self._cluster, self.refresh().resource, need, most_tokens) as answer:
            return answer(question, ())

    def clone(self, changes: Mapping[str, Any], *, name: str | None = None) -> "ClusterRun":
        """See `Run`."""
        manifest = changing.cloned(self._cluster, self.refresh().resource, name, changes_to(changes))
        return ClusterRun(self._cluster, changing.create(self._cluster, manifest))

    def explain(self) -> Mapping[str, Any]:
        """See `Run`."""
        return explanation(self._cluster, self.refresh().resource)

    def compare(self, other: Run) -> Mapping[str, Any]:
        """See `Run`."""
        if not isinstance(other, ClusterRun):
            raise ClientError(f"{getattr(other, 'name', other)} is not a run of a cluster: compare two of LoRAClient()")
        return compare(self.refresh().resource, other.refresh().resource)

    def serve(self, kind: str = "vllm") -> Sequence[Mapping[str, Any]]:
        """See `Run`."""
        return served(self._cluster, self.refresh().resource, kind)

    def logs(self) -> str:
        """See `Run`."""
        return log_so_far(self._cluster, self.refresh().resource)
