"""The chart installed, upgraded and removed through a real API server; no node runs its pod here."""

import pytest
import yaml
from tests.chart.target import RELEASE, Target

from localcluster.processes import wait_until

LORA = "lora-operator.io"


def sample(notes: str) -> str:
    """The manifests in the notes, from the line after the here-document's start to its end."""
    return notes.partition("<<'YAML'\n")[2].partition("\nYAML\n")[0]


@pytest.mark.helms(3, 4)
def test_a_release_lives_through_install_upgrade_and_removal_and_leaves_the_runs(target: Target) -> None:
    """The sample in the notes is accepted, an upgrade restarts the operator only, and uninstall keeps the runs."""
    client = target.client
    manifests = sample(target.install())
    kinds = [document["kind"] for document in yaml.safe_load_all(manifests)]
    assert kinds == ["PersistentVolumeClaim", "ConfigMap", "LoRAFineTune"]
    # The definition's condition Established comes a moment before the server tells clients of the new kind.
    known = ("api-resources", f"--api-group={LORA}", "--output=name")
    assert wait_until(lambda: "lorafinetunes" in client.kubectl(*known), timeout_s=300, interval_s=0.2)
    client.kubectl("apply", "--validate=strict", f"--namespace={target.team}", "-f", "-", stdin=manifests)
    run = ("lft", "first-run", f"--namespace={target.team}")
    deployment = ("deployment", RELEASE, f"--namespace={target.system}")
    before, generation = client.get(*run), client.get(*deployment)["metadata"]["generation"]

    target.install("--set=config.workers=3")
    assert client.get(*deployment)["metadata"]["generation"] == generation + 1
    settings = client.get("configmap", RELEASE, f"--namespace={target.system}")
    assert "workers: 3" in settings["data"]["config.yaml"]

    target.uninstall()
    kinds_left = "deployment,configmap,service,serviceaccount"
    left = client.get(kinds_left, "-l", f"app.kubernetes.io/instance={RELEASE}", f"--namespace={target.system}")
    assert left["items"] == []
    assert client.get(*run) == before

    target.install()
    assert client.get(*run) == before


def test_the_operator_may_do_its_work_everywhere_and_never_reads_secrets(target: Target) -> None:
    """The API server itself answers for the service account."""
    target.install()
    needed = (
        ("watch", f"{LORA}/lorafinetunes"),
        ("update", f"{LORA}/lorafinetunes/status"),
        ("create", "batch/jobs"),
        ("delete", "batch/jobs"),
        ("watch", "/pods"),
        ("create", "/events"),
    )
    assert [right for right in needed if not target.may(*right, target.team)] == []
    forbidden = (
        ("create", "/configmaps"),
        ("get", "/secrets"),
        ("list", "/secrets"),
        ("create", "/pods"),
        ("create", "/pods/exec"),
        ("delete", "/persistentvolumeclaims"),
        ("update", "/nodes"),
        ("update", f"{LORA}/lorafinetunes"),
    )
    assert [right for right in forbidden if target.may(*right, target.team)] == []


def test_with_a_list_of_namespaces_the_operator_may_do_nothing_elsewhere(target: Target) -> None:
    """Rights end at the namespaces that the platform team named."""
    target.install(f"--set=watch.namespaces={{{target.team}}}")
    assert target.may("create", "batch/jobs", target.team)
    for right in (("create", "batch/jobs"), ("list", f"{LORA}/lorafinetunes"), ("list", "/pods")):
        assert not target.may(*right, target.system)
        assert not target.may(*right, "default")


def test_operators_may_take_their_lease_in_their_own_namespace_and_none_elsewhere(target: Target) -> None:
    """The API server takes the Deployment and its budget, and allows this Lease alone."""
    target.install()
    budget = target.client.get("poddisruptionbudget", RELEASE, f"--namespace={target.system}")
    deployment = target.client.get("deployment", RELEASE, f"--namespace={target.system}")
    assert budget["spec"]["selector"] == deployment["spec"]["selector"]
    lease = "coordination.k8s.io/leases"
    assert target.may("create", lease, target.system)
    assert target.may("update", lease, target.system, name=RELEASE)
    assert not target.may("update", lease, target.system, name="another")
    assert not target.may("create", lease, target.team)
