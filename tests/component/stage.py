"""A stage for the operator: a real control plane, the operator as a process of its own, and a kubelet that is played.

The Job controller makes the pods; the tests write into their status what a kubelet would.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml
from tests.component.accounts import Accounts
from tests.component.documents import Object, finetune
from tests.component.operator_process import OperatorProcess
from tests.component.patience import eventually
from tests.faults.proxy import FaultProxy
from tests.ports import free_port

from localcluster import lifecycle, settings
from localcluster.api import Api, ApiError
from localcluster.client import Client
from lora_operator.controller.checks import LEASE_RIGHTS, RIGHTS, Right
from lora_operator.model.names import ATTEMPT_LABEL, TRAIN, place_of

REPOSITORY = Path(__file__).resolve().parents[2]
IMAGE = "registry.example/lora-trainer:test"

# Everything that is patient in production is quick here; what a test is about it sets itself.
QUICK: Mapping[str, Any] = {
    "trainerImage": IMAGE,
    "progressIntervalSeconds": 0.5,
    "progressTimeoutSeconds": 0.5,
    "pendingCheckSeconds": 0.5,
    "statusDelaySeconds": 0.5,
    "resyncIntervalSeconds": 3600,
    "retryBaseSeconds": 0.1,
    "retryMaxSeconds": 1,
    # Taken at the start and renewed by no test but those that are about it, so that all other writes are about runs.
    "leaseDurationSeconds": 20_000,
    "renewDeadlineSeconds": 15_000,
    "retryPeriodSeconds": 10_000,
    "logLevel": "DEBUG",
}


@dataclass(kw_only=True)
class Stage:
    """One namespace, the operators that watch it, and what there is in it."""

    cluster: Client
    api: Api
    namespace: str
    folder: Path
    node: str
    accounts: Accounts
    operators: list[OperatorProcess] = field(default_factory=list)
    proxies: list[FaultProxy] = field(default_factory=list)

    # -- the operator

    def start(
        self,
        *,
        rights: tuple[Right, ...] = RIGHTS,
        elsewhere: Mapping[str, tuple[Right, ...]] | None = None,
        wait: bool = True,
        proxy: FaultProxy | None = None,
        environment: Mapping[str, str] | None = None,
        module: str = "lora_operator",
        **changes: Any,
    ) -> OperatorProcess:
        """Start an operator that watches this namespace, with exactly these rights, and those named `elsewhere`.

        The namespace "" there stands for the whole cluster, which it then watches. In this namespace is its Lease, too,
        which it takes at once where all that were started before have ended: it is another container of their pod then.
        With a proxy it reaches the API server through that alone. `module` is what Python runs.
        """
        granted = {self.namespace: rights, **(elsewhere or {})}
        port = free_port()
        number = len(self.operators)
        taken = {operator.pod for operator in self.operators if operator.process.poll() is None}
        pod = next(name for name in map("operator-{}".format, range(number + 1)) if name not in taken)
        config = self.folder / f"config-{number}.yaml"
        namespaces = [] if "" in granted else [*granted]
        lease = {"leaseNamespace": self.namespace}
        document = {**QUICK, **lease, "namespaces": namespaces, "httpPort": port, **changes}
        config.write_text(yaml.safe_dump(document))
        log = self.folder / f"operator-{number}.log"
        granted[self.namespace] = (*granted[self.namespace], *LEASE_RIGHTS)
        account, kubeconfig = self.accounts.make(granted, proxy)
        variables = {
            **os.environ,
            "KUBECONFIG": str(kubeconfig),
            "POD_NAME": pod,
            "PYTHONPATH": f"{REPOSITORY}/operator:{REPOSITORY}/trainer_image",
            "PYTHONWARNINGS": "error::RuntimeWarning",
            **(environment or {}),
        }
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", module, "--config", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=variables,
            )
        operator = OperatorProcess(
            process=process,
            pod=pod,
            port=port,
            log=log,
            account=account,
            user=f"system:serviceaccount:{self.namespace}:{account}",
        )
        self.operators.append(operator)
        if wait:
            operator.wait_ready()
        return operator

    def end(self) -> None:
        """Stop the operators that still run."""
        for operator in self.operators:
            if operator.process.poll() is None:
                operator.kill()
        for proxy in self.proxies:
            proxy.close()

    def let_go(self) -> None:
        """Take the finalizers off the runs that are left, or neither namespace nor definition could ever be deleted."""
        try:
            runs = self.objects("lorafinetunes")
        except ApiError as error:
            if error.status != 404:
                raise
            return
        for run in runs:
            if run["metadata"].get("finalizers"):
                self.api.patch(self.path("lorafinetunes", run["metadata"]["name"]), {"metadata": {"finalizers": None}})

    def proxy(self) -> FaultProxy:
        """A proxy to the API server; it ends with the stage."""
        proxy = FaultProxy(f"https://127.0.0.1:{self.api.port}", self.api.ca_file).start()
        self.proxies.append(proxy)
        return proxy

    def grant(self, operator: OperatorProcess, rights: tuple[Right, ...], namespace: str = "") -> None:
        """From now on the operator has these rights and no others in a namespace, this one if none is named."""
        place = namespace or self.namespace
        self.accounts.bind(operator.account, place, (*rights, *LEASE_RIGHTS) if place == self.namespace else rights)

    def kubeconfig(self, rights: tuple[Right, ...], proxy: FaultProxy | None = None) -> Path:
        """A kubeconfig for an account of its own that has these rights in this namespace."""
        return self.accounts.make({self.namespace: rights}, proxy)[1]

    # -- LoRAFineTunes

    def path(self, plural: str, name: str = "", subresource: str = "") -> str:
        """URL path of objects of this namespace."""
        prefix = {"lorafinetunes": "apis/lora-operator.io/v1alpha1", "jobs": "apis/batch/v1"}.get(plural, "api/v1")
        parts = [prefix, "namespaces", self.namespace, plural, *filter(None, (name, subresource))]
        return "/" + "/".join(parts)

    def apply(self, name: str = "tone", **spec: Any) -> Object:
        """Create a LoRAFineTune."""
        return self.api.post(self.path("lorafinetunes"), finetune(name, **spec))

    def finetune(self, name: str = "tone") -> Object:
        """A LoRAFineTune as it is now."""
        return self.api.get(self.path("lorafinetunes", name))

    def change(self, name: str = "tone", **spec: Any) -> None:
        """Change fields of its spec."""
        self.api.patch(self.path("lorafinetunes", name), {"spec": spec})

    def condition(self, kind: str, name: str = "tone") -> Object:
        """One condition of a LoRAFineTune; empty where there is none."""
        conditions = self.finetune(name).get("status", {}).get("conditions", [])
        return next((c for c in conditions if c["type"] == kind), {})

    def wait_condition(self, kind: str, *, status: str = "", reason: str = "", name: str = "tone") -> Object:
        """Wait for a condition with this status and reason."""

        def look() -> Object | None:
            found = self.condition(kind, name)
            good = found and status in ("", found["status"]) and reason in ("", found["reason"])
            return found if good else None

        try:
            return eventually(look, f"{kind} is {status} {reason}")
        except AssertionError as error:
            error.add_note(json.dumps(self.finetune(name).get("status"), indent=1))
            error.add_note(self.operators[-1].text()[-4000:])
            raise

    def wait_event(self, kind: str, reason: str) -> Object:
        """Wait for an Event about a LoRAFineTune; they come after the status."""

        def look() -> Object | None:
            ours = (e for e in self.objects("events") if e["involvedObject"]["kind"] == "LoRAFineTune")
            return next((e for e in ours if (e["type"], e["reason"]) == (kind, reason)), None)

        return eventually(look, f"there is an Event {reason}")

    # -- children

    def objects(self, plural: str) -> list[Object]:
        """All objects of a kind."""
        items: list[Object] = self.api.get(self.path(plural))["items"]
        return items

    def jobs_of(self, stage: str) -> list[Object]:
        """The Jobs that train, or those of another stage."""
        return [j for j in self.objects("jobs") if place_of(j["metadata"]["name"])[1] == stage]

    def wait_job(self, attempt: int = 1, *, stage: str = TRAIN) -> Object:
        """Wait for the Job of an attempt that trains, or of another of its stages."""

        def look() -> Object | None:
            found = (j for j in self.jobs_of(stage) if j["metadata"]["labels"][ATTEMPT_LABEL] == str(attempt))
            return next(found, None)

        return eventually(look, f"the Job of attempt {attempt} exists")

    def wait_pods(self, job: Object, count: int) -> list[Object]:
        """Wait for so many pods of a Job; they come in the order of their index."""

        def look() -> list[Object] | None:
            uid = job["metadata"]["uid"]
            pods = [p for p in self.objects("pods") if any(o["uid"] == uid for o in p["metadata"]["ownerReferences"])]
            return sorted(pods, key=lambda pod: str(pod["metadata"]["name"])) if len(pods) == count else None

        return eventually(look, f"the Job has {count} pods")

    def wait_held(self, job: Object) -> None:
        """Wait until the Job controller has carried a suspension out.

        It may lag behind the operator, and delete a pod that has got a node meanwhile, where no kubelet ends it.
        """
        uid, path = job["metadata"]["uid"], self.path("jobs", job["metadata"]["name"])

        def look() -> bool:
            conditions = self.api.get(path)["status"].get("conditions", [])
            held = any(c["type"] == "Suspended" and c["status"] == "True" for c in conditions)
            owned = (p for p in self.objects("pods") if any(o["uid"] == uid for o in p["metadata"]["ownerReferences"]))
            return held and not any(p["status"].get("phase") not in ("Failed", "Succeeded") for p in owned)

        eventually(look, "the Job is held and has no pod")

    def wait_pod(self, job: Object, *, other_than: str = "") -> Object:
        """Wait for a living pod of a Job, not the one with the uid `other_than`."""

        def look() -> Object | None:
            for pod in self.objects("pods"):
                owned = any(o["uid"] == job["metadata"]["uid"] for o in pod["metadata"].get("ownerReferences", []))
                ending = pod["metadata"].get("deletionTimestamp")
                living = not ending and pod["status"].get("phase") not in ("Failed", "Succeeded")
                if owned and living and pod["metadata"]["uid"] != other_than:
                    return pod
            return None

        return eventually(look, "the Job has a pod")

    # -- the kubelet's part

    def bind_pod(self, pod: Object) -> None:
        """It has a node, as the scheduler says, whose first word on the pod would otherwise come later than this."""
        name = pod["metadata"]["name"]
        eventually(lambda: self._has_been_looked_at(name), "the scheduler has looked at the pod")
        target = {"apiVersion": "v1", "kind": "Node", "name": self.node}
        self.api.post(self.path("pods", name, "binding"), {"metadata": {"name": name}, "target": target})

    def _has_been_looked_at(self, name: str) -> bool:
        conditions = self.api.get(self.path("pods", name))["status"].get("conditions", [])
        return any(condition["type"] == "PodScheduled" for condition in conditions)

    def run_pod(self, pod: Object, *, ip: str = "127.82.0.1") -> None:
        """The trainer has started."""
        ready = {"type": "Ready", "status": "True", "lastTransitionTime": now()}
        self._write_pod(pod, "Running", {"running": {"startedAt": now()}}, ip=ip, conditions=[ready])

    def wait_pod_state(self, pod: Object, reason: str, message: str) -> None:
        """The container waits, for instance for its image."""
        self._write_pod(pod, "Pending", {"waiting": {"reason": reason, "message": message}})

    def end_pod(
        self, pod: Object, exit_code: int, message: str = "", *, reason: str = "", in_s: int = 0, phase: str = ""
    ) -> None:
        """The trainer has ended; by its node's clock `in_s` seconds from now, 10 s after which its Job retries.

        In the `phase` Running its node still clears the pod away, and the Job waits for that: see `clear_away`.
        """
        ended = {
            "exitCode": exit_code,
            "reason": reason or ("Completed" if exit_code == 0 else "Error"),
            "message": message,
            "startedAt": now(),
            "finishedAt": now(in_s),
        }
        self._write_pod(pod, phase or ("Succeeded" if exit_code == 0 else "Failed"), {"terminated": ended})

    def clear_away(self, pod: Object) -> None:
        """The node is done with a pod whose trainer has ended, which says what it said then."""
        path = self.path("pods", pod["metadata"]["name"])
        (container,) = self.api.get(path)["status"]["containerStatuses"]
        phase = "Succeeded" if container["state"]["terminated"]["exitCode"] == 0 else "Failed"
        self.api.patch(f"{path}/status", {"status": {"phase": phase}})

    def _write_pod(
        self, pod: Object, phase: str, state: Object, *, ip: str = "", conditions: "list[Object] | None" = None
    ) -> None:
        name = pod["metadata"]["name"]
        if not self.api.get(self.path("pods", name))["spec"].get("nodeName"):
            self.bind_pod(pod)
        container = {
            "name": "trainer",
            "image": IMAGE,
            "imageID": "",
            "ready": "running" in state,
            "restartCount": 0,
            "state": state,
        }
        status: Object = {"phase": phase, "containerStatuses": [container]}
        if ip:
            status |= {"podIP": ip, "podIPs": [{"ip": ip}]}
        if conditions is not None:
            written = [condition["type"] for condition in conditions]
            before = self.api.get(self.path("pods", name))["status"].get("conditions", [])
            status["conditions"] = [*(c for c in before if c["type"] not in written), *conditions]
        self.api.patch(self.path("pods", name, "status"), {"status": status})


@contextmanager
def make_stage(cluster: Client, namespace: str, folder: Path) -> Iterator[Stage]:
    """A stage in a namespace; its operators are ended with it."""
    record = lifecycle.load_record(settings.places(cluster.name or ""))
    assert record is not None
    api = lifecycle.api(settings.places(cluster.name or ""), record.api_port)
    accounts = Accounts(api=api, kubeconfig=cluster.kubeconfig, namespace=namespace, folder=folder)
    stage = Stage(
        cluster=cluster, api=api, namespace=namespace, folder=folder, node=f"node-{namespace}", accounts=accounts
    )
    # Pods are bound to it by hand: it takes nothing from the scheduler, and keeps its pods from the garbage collector.
    api.post("/api/v1/nodes", {"metadata": node_metadata(stage.node), "spec": {"unschedulable": True}})
    try:
        yield stage
    finally:
        stage.end()
        stage.let_go()
        api.delete(f"/api/v1/nodes/{stage.node}")


def node_metadata(name: str) -> Object:
    """With the label that a kubelet gives to its node, and that pods ask for."""
    return {"name": name, "labels": {"kubernetes.io/os": "linux"}}


def now(in_s: int = 0) -> str:
    """The present time, or one `in_s` seconds from now, as Kubernetes writes it."""
    return (datetime.now(UTC) + timedelta(seconds=in_s)).strftime("%Y-%m-%dT%H:%M:%SZ")


def gone(api: Api, path: str) -> bool:
    """Whether the API server knows the object no more."""
    try:
        api.get(path)
    except ApiError as error:
        if error.status != 404:
            raise
        return True
    return False
