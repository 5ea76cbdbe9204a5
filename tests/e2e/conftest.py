"""The chart, installed as a user would, with the stand-in for the Hub; shared by the end-to-end tests."""

import json
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.e2e.support import BROKEN_MODEL, MODEL, PATIENCE_S
from tests.trainer import tiny

from demoflow import ask as demo_ask
from demoflow import cluster as demo_cluster
from demoflow import run as demo_run
from demoflow.cluster import Images
from demoflow.packages import Packages
from hub.deploy import NAMESPACE, deploy
from localcluster.client import HACK_CLUSTER, Client, output
from localcluster.console import Console
from lora_client.views.answers import Answer

_OPERATOR = "deployment/lora-finetune-operator"
_SELECTOR = f"--selector=app.kubernetes.io/instance={demo_run.RELEASE}"
_ROLLED_OUT = f"--timeout={PATIENCE_S}s"
# Short, since tests wait for what follows; a GPU that is asked for is not really there.
_SETTINGS = (
    "--set=config.allowCPU=true",
    "--set=config.progressIntervalSeconds=2",
    "--set=config.pendingCheckSeconds=2",
    "--set=config.retryMaxSeconds=5",
    "--set=config.terminationGraceSeconds=20",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """A cluster with the chart and the Hub's stand-in."""

    client: Client
    images: Images
    endpoint: str

    @property
    def _namespace(self) -> str:
        return f"--namespace={demo_run.RELEASE_NAMESPACE}"

    def upgrade(self, *flags: str) -> None:
        """`helm upgrade --install` with the tests' settings and `flags`, and wait until the operator is ready."""
        demo_run.install_chart(self.client, self.images, self.endpoint, *_SETTINGS, *flags, timeout_s=PATIENCE_S)

    def operator_logs(self) -> str:
        """Everything that the operator has logged since its pod started."""
        return self.client.kubectl("logs", _OPERATOR, self._namespace, "--tail=-1")

    def explain(self, namespace: str, name: str) -> str:
        """What the operator's pod says of a run."""
        command = ("lora-operator", "explain", f"{namespace}/{name}")
        return self.client.kubectl("exec", _OPERATOR, self._namespace, "--", *command)

    def operator_metrics(self) -> str:
        """The operator's /metrics, through the API server's proxy."""
        pod = self.client.get("pods", _SELECTOR, self._namespace)["items"][0]["metadata"]["name"]
        path = f"/api/v1/namespaces/{demo_run.RELEASE_NAMESPACE}/pods/{pod}:8080/proxy/metrics"
        return self.client.kubectl("get", f"--raw={path}")

    def kill_operator(self) -> None:
        """End the operator's pod without grace, and wait until its successor is ready."""
        ended = self.client.kubectl("delete", "pod", _SELECTOR, self._namespace, "--grace-period=0", "--force")
        assert "deleted" in ended
        self.client.kubectl("rollout", "status", _OPERATOR, self._namespace, _ROLLED_OUT, timeout_s=PATIENCE_S + 30)

    def offer_gpus(self, count: int) -> None:
        """Let the node offer GPUs to the scheduler, with no device behind them."""
        output([str(HACK_CLUSTER), "gpus", str(count)])

    def ask(self, namespace: str, artifact_uri: str) -> list[Answer]:
        """The demo's questions to the base model and to the adapter, in a pod of the trainer's image."""
        return demo_ask.ask(
            self.client, self.images.trainer, artifact_uri, self.endpoint, namespace=namespace, timeout_s=PATIENCE_S
        )


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's files."""
    return tiny.make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def installed(cluster: Client, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    """The chart on the full cluster; afterwards uninstalled, or as the demo left it where the demo came before."""
    console = Console()
    of_the_demo = demo_run.RELEASE in cluster.helm("list", "--short", f"--namespace={demo_run.RELEASE_NAMESPACE}")
    Packages().convert()
    images = demo_cluster.images(with_stand_in=True, console=console)
    ready = Installed(client=cluster, images=images, endpoint=deploy(cluster, images.hub or "", timeout_s=PATIENCE_S))
    broken = tiny.enlarged(tiny_model, tmp_path_factory.mktemp("models") / "broken", float("inf"))
    _offer(cluster, {MODEL: tiny_model, BROKEN_MODEL: broken})
    ready.upgrade()
    _wait_for_discovery(cluster)
    yield ready
    if of_the_demo:
        demo_run.install_chart(cluster, images, ready.endpoint, timeout_s=PATIENCE_S)
        return
    cluster.helm("uninstall", demo_run.RELEASE, f"--namespace={demo_run.RELEASE_NAMESPACE}", "--wait")
    assert cluster.kubectl("get", "crd", "lorafinetunes.lora-operator.io", "--output=name").strip()


@pytest.fixture(scope="module")
def module_namespace(cluster: Client) -> Iterator[str]:
    """A namespace that the tests of a module share."""
    name = f"test-{uuid.uuid4().hex[:10]}"
    cluster.kubectl("create", "namespace", name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


def _offer(cluster: Client, models: Mapping[str, Path]) -> None:
    """Let the stand-in for the Hub have models by their addresses: each is small enough for a ConfigMap."""
    hub = f"--namespace={NAMESPACE}"
    volumes, mounts = [], []
    for address, folder in models.items():
        repository = address.removeprefix("hf://")
        name = repository.replace("/", "-")
        cluster.kubectl("delete", "configmap", name, hub, "--ignore-not-found")
        cluster.kubectl("create", "configmap", name, f"--from-file={folder}", hub)
        volumes.append({"name": name, "configMap": {"name": name}})
        mounts.append({"name": name, "mountPath": f"/srv/repositories/models/{repository}"})
    spec = {"volumes": volumes, "containers": [{"name": "hub", "volumeMounts": mounts}]}
    # The time makes a new pod of it: files of a ConfigMap that was there before come late.
    template = {"metadata": {"annotations": {"tests/offered-at": str(time.time())}}, "spec": spec}
    cluster.kubectl("patch", "deployment", "hub", hub, f"--patch={json.dumps({'spec': {'template': template}})}")
    cluster.kubectl("rollout", "status", "deployment/hub", hub, _ROLLED_OUT, timeout_s=PATIENCE_S + 30)


def _wait_for_discovery(cluster: Client) -> None:
    """A definition is established a moment before kubectl can see the new kind."""
    deadline = time.monotonic() + PATIENCE_S
    while "lorafinetunes" not in cluster.kubectl("api-resources", "--api-group=lora-operator.io", "--output=name"):
        assert time.monotonic() < deadline, "the API server does not offer lorafinetunes"
