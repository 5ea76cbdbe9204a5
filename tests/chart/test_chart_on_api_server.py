"""The chart installed, upgraded and removed through a real API server; no node runs its pod here."""

import json
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from localcluster import settings, tools
from localcluster.console import Console

CHART = Path(__file__).resolve().parents[2] / "helm/lora-finetune-operator"
RELEASE = "lora-chart-test"
IMAGES = (
    "--set=image.repository=registry.example.com/operator",
    "--set=trainer.image.repository=registry.example.com/trainer",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """helm and kubectl on the operator's namespace, which enforces the restricted Pod Security Standard.

    `team` is another namespace, in which people have their runs.
    """

    helm_binary: Path
    kubectl_binary: Path
    kubeconfig: Path
    namespace: str
    team: str

    def helm(self, *arguments: str) -> str:
        return self._run([self.helm_binary, *arguments, "--namespace", self.namespace])

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return self._run([self.kubectl_binary, "--namespace", self.namespace, *arguments], stdin)

    def get(self, *arguments: str) -> dict[str, Any]:
        return dict(json.loads(self.kubectl("get", *arguments, "-o", "json")))

    def can(self, verb: str, resource: str, namespace: str) -> bool:
        """Whether the operator's service account has the right."""
        kind, _, part = resource.partition("/")
        who = f"--as=system:serviceaccount:{self.namespace}:{RELEASE}"
        command = [self.kubectl_binary, "--namespace", namespace, "auth", "can-i", verb, kind, who]
        return self._run([*command, f"--subresource={part}"] if part else command, allowed=(0, 1)).strip() == "yes"

    def _run(self, command: Sequence[object], stdin: str | None = None, allowed: Sequence[int] = (0,)) -> str:
        full = [*map(str, command), "--kubeconfig", str(self.kubeconfig)]
        done = subprocess.run(full, input=stdin, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode in allowed, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def cluster(control_plane: Any, helm: Any) -> Iterator[Cluster]:
    """Two namespaces, removed afterwards with what is left of the release."""
    unique = uuid.uuid4().hex[:8]
    binaries = tools.ensure(tools.kubernetes(), settings.cache_directory(), Console())
    made = Cluster(
        helm_binary=helm.binary,
        kubectl_binary=binaries / "kubectl",
        kubeconfig=Path(control_plane.kubeconfig),
        namespace=f"chart-{unique}",
        team=f"team-{unique}",
    )
    for name in (made.namespace, made.team):
        made.kubectl("create", "namespace", name)
    made.kubectl("label", "namespace", made.namespace, "pod-security.kubernetes.io/enforce=restricted")
    yield made
    made.helm("uninstall", RELEASE, "--ignore-not-found")
    for name in (made.namespace, made.team):
        made.kubectl("delete", "lorafinetunes", "--all", "--namespace", name)
        made.kubectl("delete", "namespace", name, "--wait=false")


def install(cluster: Cluster, *flags: str) -> str:
    """`helm upgrade --install`; the definition may be there already, put by kubectl."""
    return cluster.helm("upgrade", "--install", RELEASE, str(CHART), "--take-ownership", *IMAGES, *flags)


def sample(notes: str) -> str:
    """The manifests in the notes, from the line after the here-document's start to its end."""
    return notes.partition("<<'YAML'\n")[2].partition("\nYAML\n")[0]


def test_a_release_lives_through_install_upgrade_and_removal_and_leaves_the_runs(cluster: Cluster) -> None:
    """The sample in the notes is accepted, an upgrade restarts the operator only, and uninstall keeps the runs."""
    notes = install(cluster)
    manifests = sample(notes)
    assert [document["kind"] for document in yaml.safe_load_all(manifests)] == [
        "PersistentVolumeClaim",
        "ConfigMap",
        "LoRAFineTune",
    ]
    cluster.kubectl("wait", "--for=condition=Established", "crd/lorafinetunes.lora-operator.io", "--timeout=60s")
    cluster.kubectl("apply", "--validate=strict", "--namespace", cluster.team, "-f", "-", stdin=manifests)
    before = cluster.get("lft", "first-run", "--namespace", cluster.team)
    generation = cluster.get("deployment", RELEASE)["metadata"]["generation"]

    install(cluster, "--set=config.workers=3")
    assert cluster.get("deployment", RELEASE)["metadata"]["generation"] == generation + 1
    assert "workers: 3" in cluster.get("configmap", RELEASE)["data"]["config.yaml"]

    cluster.helm("uninstall", RELEASE)
    assert (
        cluster.kubectl(
            "get", "deployment,configmap,service,serviceaccount", "-l", f"app.kubernetes.io/instance={RELEASE}"
        )
        == ""
    )
    after = cluster.get("lft", "first-run", "--namespace", cluster.team)
    assert after == before

    install(cluster)
    assert cluster.get("lft", "first-run", "--namespace", cluster.team) == before


def test_the_operator_may_do_its_work_everywhere_and_never_reads_secrets(cluster: Cluster) -> None:
    """The API server itself answers for the service account."""
    install(cluster)
    for verb, resource in (
        ("watch", "lorafinetunes.lora-operator.io"),
        ("update", "lorafinetunes.lora-operator.io/status"),
        ("create", "jobs.batch"),
        ("delete", "jobs.batch"),
        ("watch", "pods"),
        ("create", "configmaps"),
        ("create", "events"),
    ):
        assert cluster.can(verb, resource, cluster.team), f"{verb} {resource}"
    for verb, resource in (
        ("get", "secrets"),
        ("list", "secrets"),
        ("create", "pods"),
        ("create", "pods/exec"),
        ("delete", "persistentvolumeclaims"),
        ("get", "nodes"),
        ("update", "lorafinetunes.lora-operator.io"),
    ):
        assert not cluster.can(verb, resource, cluster.team), f"{verb} {resource}"


def test_with_a_list_of_namespaces_the_operator_may_do_nothing_elsewhere(cluster: Cluster) -> None:
    """Rights end at the namespaces that the platform team named."""
    install(cluster, f"--set=watch.namespaces={{{cluster.team}}}")
    assert cluster.can("create", "jobs.batch", cluster.team)
    assert not cluster.can("create", "jobs.batch", cluster.namespace)
    assert not cluster.can("list", "lorafinetunes.lora-operator.io", "default")
    assert not cluster.can("list", "pods", "kube-system")


def test_the_pod_passes_the_restricted_pod_security_standard(cluster: Cluster) -> None:
    """Admission of a namespace that enforces it takes the pod."""
    install(cluster)
    pod = cluster.get("deployment", RELEASE)["spec"]["template"]
    manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe"}, "spec": pod["spec"]}
    out = cluster.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(manifest))
    assert "pod/probe created" in out
