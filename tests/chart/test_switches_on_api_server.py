"""What the chart's switches do on a real API server: every two together, rules on runs, the notes, helm test."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.chart import helms
from tests.chart.matrix import RECORDED, ROWS, merged, values_of
from tests.chart.objects import parsed, pods_of
from tests.chart.operating import operating
from tests.chart.target import RELEASE, Target
from tests.component.patience import eventually

from localcluster import tools
from localcluster.client import Client, CommandError

REPOSITORY = Path(__file__).resolve().parents[2]
MONITORING = "monitoring.coreos.com"
SOAK = os.environ.get("HYPOTHESIS_PROFILE") == "soak"
# What a careless template would break, or be broken by.
CONTACT = 'das "ML"-Team \\ {{ .Values }} <ü>'
RULES = {
    "enabled": True,
    "contact": CONTACT,
    "modelPrefixes": ["hf://acme/", "pvc://models/"],
    "datasetPrefixes": ["pvc://"],
    "outputPrefixes": ["pvc://adapters/", "s3://results/"],
    "mostGPUs": 8,
    "requireQueue": True,
}
QUEUE = "kueue.x-k8s.io/queue-name"


@pytest.fixture(scope="module")
def prometheus_definitions(control_plane: Client) -> Iterator[None]:
    """The names of the Prometheus operator's kinds, with any content."""
    kinds = ("ServiceMonitor", "PodMonitor", "PrometheusRule", "Prometheus")
    for kind in kinds:
        control_plane.kubectl("apply", "--server-side", "--filename=-", stdin=json.dumps(definition(kind)))
    names = [definition(kind)["metadata"]["name"] for kind in kinds]
    eventually(lambda: control_plane.served() >= set(names), "the API server serves the kinds")
    yield
    control_plane.kubectl("delete", *(f"crd/{name}" for name in names))


def definition(kind: str) -> dict[str, Any]:
    plural = f"{kind.lower()}s" if kind != "Prometheus" else "prometheuses"
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{MONITORING}"},
        "spec": {
            "group": MONITORING,
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural, "singular": kind.lower()},
            "versions": [{"name": "v1", "served": True, "storage": True, "schema": schema}],
        },
    }


@pytest.mark.helms(3, 4)
def test_choices_install_and_follow_each_other(target: Target, prometheus_definitions: None) -> None:
    """Row after row as upgrades of one release; admission takes the pods of each in a restricted namespace.

    Each choice once, and every two of them in the soak.
    """
    rows = ROWS if SOAK else (*RECORDED.values(), RECORDED["defaults"])
    amounts: set[int] = set()
    for row in rows:
        values = values_of(row)
        if "watch" in values:
            values |= {"watch": {"namespaces": [target.team, target.system]}}
        # Other tests need the definition, which would be deleted with the row after.
        said = target.install("--output=json", values=merged(values, {"crds": {"keep": True}}))
        release = json.loads(said)
        rendered = "\n---\n".join([release["manifest"], *(hook["manifest"] for hook in release.get("hooks", ()))])
        # Its account may be a given one, or come with helm test alone.
        pods = [{**found, "serviceAccountName": "default"} for found in pods_of(parsed(rendered))]
        amounts.add(len(pods))
        probes = [
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"probe-{number}"}, "spec": spec}
            for number, spec in enumerate(pods)
        ]
        listed = json.dumps({"apiVersion": "v1", "kind": "List", "items": probes})
        target.client.kubectl("create", "--dry-run=server", f"--namespace={target.system}", "-f", "-", stdin=listed)
    assert amounts == {1, 2}, "the operator's, and helm test's where there is one"


@pytest.mark.helms(3, 4)
def test_a_listed_namespace_that_does_not_exist_is_named(target: Target) -> None:
    """Rather than by a Role that cannot be created, after others were."""
    with pytest.raises(CommandError) as error:
        target.install(f"--set=watch.namespaces={{{target.team},nowhere-a,nowhere-b}}")
    assert "watch.namespaces lists nowhere-a and nowhere-b, which the cluster does not have" in str(error.value)
    with pytest.raises(CommandError) as error:
        target.install("--set=watch.namespaces={nowhere-a}")
    assert "create it with `kubectl create namespace nowhere-a`, or take it off the list" in str(error.value)


def run_of(name: str = "tone", *, labels: Mapping[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    """A run that keeps every rule, with these changes."""
    good = {
        "model": {"uri": "hf://acme/base"},
        "dataset": {"uri": "pvc://data/train.jsonl"},
        "output": {"uri": "pvc://adapters/tone"},
    }
    return {
        "apiVersion": "lora-operator.io/v1alpha1",
        "kind": "LoRAFineTune",
        "metadata": {"name": name, "labels": {QUEUE: "team"} if labels is None else dict(labels)},
        "spec": {**good, **spec},
    }


def refused(target: Target, run: Mapping[str, Any], namespace: str = "") -> str:
    """What the API server says of a new run, by a dry run; nothing where it accepts it."""
    command = ("create", "--dry-run=server", f"--namespace={namespace or target.team}", "-f", "-")
    try:
        target.client.kubectl(*command, stdin=json.dumps(run))
    except CommandError as error:
        return str(error)
    return ""


BROKEN: tuple[tuple[dict[str, Any], str], ...] = (
    (
        {"model": {"uri": "hf://acme-test/base"}},
        'spec.model.uri is "hf://acme-test/base": it must begin with hf://acme/ or pvc://models/; choose',
    ),
    (
        {"dataset": {"uri": "hf://acme/chats"}},
        'spec.dataset.uri is "hf://acme/chats": it must begin with pvc://; choose',
    ),
    (
        {"dataset": {"uri": "pvc://data/train.jsonl", "validationUri": "s3://bucket/held-out.jsonl"}},
        'spec.dataset.validationUri is "s3://bucket/held-out.jsonl": it must begin with pvc://; choose',
    ),
    (
        {"output": {"uri": "pvc://elsewhere/tone"}},
        'spec.output.uri is "pvc://elsewhere/tone": it must begin with pvc://adapters/ or s3://results/; choose',
    ),
    (
        {"resources": {"gpus": 4, "nodes": 3}, "training": {"effectiveBatchSize": 12}},
        "spec.resources.gpus x nodes is 4 x 3: a run may have at most 8 GPUs; lower one of them",
    ),
    (
        {"resources": {"gpuResourceName": "nvidia.com/mig-1g.10gb", "extendedResources": {"nvidia.com/gpu": 16}}},
        "spec.resources.extendedResources names GPUs: a run may have at most 8, and they are counted by gpus; name",
    ),
    (
        {"labels": {}},
        f"metadata.labels has no {QUEUE}: each run must name its queue there; add the label (kubectl get localqueues",
    ),
)


def test_rules_on_runs_name_field_value_rule_and_whom_to_ask(target: Target) -> None:
    """In the listed namespaces and no others; what keeps all rules passes, one GPU by default."""
    target.install("--set=watch.namespaces={" + target.team + "}")
    client = target.client
    client.kubectl("apply", f"--namespace={target.team}", "-f", "-", stdin=json.dumps(run_of("older", labels={})))
    target.install(values={"policies": RULES, "watch": {"namespaces": [target.team]}})
    worst = run_of(labels={}, model={"uri": "hf://else/base"})
    eventually(lambda: refused(target, worst), "the rules are in force")
    assert refused(target, worst, target.system) == ""
    for changes, sentence in BROKEN:
        said = refused(target, run_of(**changes))
        assert sentence in said
        assert said.rstrip().endswith(f"or ask {CONTACT}")
    for passing in (
        {},
        {"resources": {"gpus": 8}, "training": {"effectiveBatchSize": 8}},
        {"resources": {"extendedResources": {"rdma/hca_shared_devices_a": 1}}},
        {"model": {"uri": "pvc://models/base"}, "output": {"uri": "s3://results/tone"}},
    ):
        assert refused(target, run_of(**passing)) == ""
    assert refused(target, run_of(labels={QUEUE: ""})) != ""


def test_a_run_that_is_older_than_the_rules_may_be_changed_and_no_run_gives_its_queue_up(target: Target) -> None:
    """A rule must not keep anybody from suspending what goes on."""
    client, here = target.client, f"--namespace={target.team}"
    client.kubectl("patch", "lft", "older", here, "--type=merge", "--patch", '{"spec": {"suspend": true}}')
    client.kubectl("apply", here, "-f", "-", stdin=json.dumps(run_of("queued")))
    client.kubectl("patch", "lft", "queued", here, "--type=merge", "--patch", '{"spec": {"suspend": true}}')
    with pytest.raises(CommandError, match=f"metadata.labels has no {QUEUE}"):
        client.kubectl("label", "lft", "queued", here, f"{QUEUE}-")
    client.kubectl("label", "lft", "queued", here, f"{QUEUE}=other", "--overwrite")
    client.kubectl("delete", "lft", "older", "queued", here)


def test_where_runs_have_a_queue_by_default_a_new_one_may_name_none(target: Target) -> None:
    """It gets that of `defaults.queue`, so each run has one all the same; none gives its own up."""
    values = {"policies": {"enabled": True, "contact": CONTACT, "requireQueue": True}, "defaults": {"queue": "gpus"}}
    target.install(values={**values, "watch": {"namespaces": [target.team]}})
    eventually(lambda: refused(target, run_of(labels={})) == "", "a run without the label is accepted")
    client, here = target.client, f"--namespace={target.team}"
    client.kubectl("apply", here, "-f", "-", stdin=json.dumps(run_of("queued")))
    with pytest.raises(CommandError, match=f"metadata.labels has no {QUEUE}"):
        client.kubectl("label", "lft", "queued", here, f"{QUEUE}-")
    client.kubectl("delete", "lft", "queued", here)


def prometheus(namespace: str, **spec: Any) -> str:
    return json.dumps(
        {
            "apiVersion": f"{MONITORING}/v1",
            "kind": "Prometheus",
            "metadata": {"name": "main", "namespace": namespace},
            "spec": spec,
        }
    )


def test_the_notes_name_monitors_and_rules_that_no_prometheus_selects(
    target: Target, prometheus_definitions: None
) -> None:
    """By its labels and by the namespace, as the Prometheus operator compares them; nothing selects by default."""
    client = target.client
    on = {"enabled": True, "additionalLabels": {"release": "stack"}}
    rules = {**on, "runbookURL": "https://git.example.com/docs/runbooks"}
    other = {**on, "additionalLabels": {"release": "other"}}
    values = {"metrics": {"serviceMonitor": on, "podMonitor": other, "prometheusRule": rules}}
    assert "nothing is scraped until a Prometheus selects the PodMonitor" in target.install(values=values)
    anywhere: dict[str, Any] = {"serviceMonitorNamespaceSelector": {}, "podMonitorNamespaceSelector": {}}
    by_label = {"matchLabels": {"release": "stack"}}
    exists = {"matchExpressions": [{"key": "release", "operator": "In", "values": ["stack", "other"]}]}
    absent = {"matchExpressions": [{"key": "release", "operator": "DoesNotExist"}]}
    here = {"matchLabels": {"kubernetes.io/metadata.name": target.system}}
    everything: dict[str, Any] = {"ruleSelector": {}, "ruleNamespaceSelector": {}}
    cases: tuple[tuple[dict[str, Any], tuple[bool, bool, bool]], ...] = (
        ({**anywhere, "serviceMonitorSelector": by_label, "podMonitorSelector": by_label}, (True, False, False)),
        ({**anywhere, **everything, "serviceMonitorSelector": {}, "podMonitorSelector": exists}, (True, True, True)),
        ({**anywhere, **everything, "serviceMonitorSelector": absent, "ruleSelector": absent}, (False, False, False)),
        ({"serviceMonitorSelector": {}, "podMonitorSelector": {}, "ruleSelector": {}}, (False, False, False)),
        (
            {"serviceMonitorSelector": {}, "podMonitorSelector": {}, "serviceMonitorNamespaceSelector": here},
            (True, False, False),
        ),
    )
    for spec, scraped in cases:
        client.kubectl("replace", "--force", "-f", "-", stdin=prometheus(target.team, **spec))
        notes = target.install(values=values)
        found = tuple(
            f"NO Prometheus of this cluster selects the {kind}" not in notes
            for kind in ("ServiceMonitor", "PodMonitor", "PrometheusRule")
        )
        assert found == scraped, spec
        assert "until a Prometheus selects" not in notes
    client.kubectl("delete", f"--namespace={target.team}", "prometheus/main")  # other tests' notes would see it


def test_the_notes_hold_the_training_pods_policy_where_all_namespaces_are_watched(target: Target) -> None:
    """It is accepted as it stands there, and is what listed namespaces get."""
    client = target.client
    network = {"enabled": True, "apiServerCIDRs": ["10.0.0.1/32"], "prometheusNamespaces": ["monitoring"]}
    notes = target.install(values={"networkPolicy": network})
    pasted = notes.rpartition("<<'YAML'\n")[2].partition("\nYAML\n")[0]
    here = f"--namespace={target.team}"
    client.kubectl("apply", "--validate=strict", here, "-f", "-", stdin=pasted)
    name = f"{RELEASE}-trainers"
    by_hand = client.get("networkpolicy", name, here)["spec"]
    client.kubectl("delete", "networkpolicy", name, here)
    target.install(values={"networkPolicy": network, "watch": {"namespaces": [target.team]}})
    assert client.get("networkpolicy", name, here)["spec"] == by_hand


def pod_of_test(target: Target, *, other_than: str = "") -> dict[str, Any]:
    """The pod of helm test's Job, which the Job controller makes."""

    def look() -> dict[str, Any] | None:
        found = target.client.get("pods", f"--namespace={target.system}", f"--selector=job-name={RELEASE}-test")
        return next((pod for pod in found["items"] if pod["metadata"]["uid"] != other_than), None)

    return eventually(look, "helm test has a pod")


def verify(target: Target, pod: Mapping[str, Any], folder: Path) -> "subprocess.CompletedProcess[str]":
    """Do what the pod would, with the account and the files that it has.

    Of the account that Helm has made anew a busy API server may hear a moment later than a pod would start.
    """
    client, here = target.client, f"--namespace={target.system}"
    sample = folder / "sample.yaml"
    sample.write_text(client.get("configmap", f"{RELEASE}-test", here)["data"]["sample.yaml"])
    (container,) = pod["spec"]["containers"]
    places = {
        "--config": f"--config={folder / 'config.yaml'}",
        "--sample": f"--sample={sample}",
    }
    arguments = [places.get(argument.partition("=")[0], argument) for argument in container["args"]]
    kubeconfig = target.kubeconfig(pod["spec"]["serviceAccountName"], folder)
    for _ in range(30):
        done = subprocess.run(
            [sys.executable, "-m", "lora_operator", *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
            env={**os.environ, "KUBECONFIG": str(kubeconfig)},
        )
        if "(Unauthorized)" not in done.stderr:
            break
        time.sleep(1)
    return done


def end(target: Target, pod: Mapping[str, Any], phase: str) -> None:
    """The kubelet's part."""
    patch = json.dumps({"status": {"phase": phase}})
    here = f"--namespace={target.system}"
    target.client.kubectl(
        "patch", "pod", pod["metadata"]["name"], here, "--subresource=status", "--type=merge", f"--patch={patch}"
    )


@pytest.mark.helms(3, 4)
def test_helm_test_finds_a_whole_installation_whole_and_says_where_no_operator_works(
    target: Target, helm: helms.Helm, tmp_path: Path
) -> None:
    """With the account of the test's own; its objects are gone after a success, and the Job stays after a failure."""
    target.install()
    client, here = target.client, f"--namespace={target.system}"
    command = ["helm", "test", RELEASE, here]
    testing = partial(
        subprocess.Popen, env=client.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    with operating(target, tmp_path), testing([*command, "--timeout=600s"]) as test:
        pod = pod_of_test(target)
        done = verify(target, pod, tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert [line.partition(":")[0] for line in done.stdout.splitlines()] == ["ok"] * 2
        end(target, pod, "Succeeded")
        said, _ = test.communicate(timeout=630)
        assert test.returncode == 0, said
    left = client.get(
        "jobs,configmaps,serviceaccounts,roles,rolebindings", here, "--selector=app.kubernetes.io/component=test"
    )
    assert left["items"] == []
    assert client.get("lft", here)["items"] == []

    # Helm 4 waits to its end where the Job fails.
    patience = "600s" if helm == helms.built(tools.HELM) else "45s"
    with testing([*command, f"--timeout={patience}"]) as test:
        pod = pod_of_test(target, other_than=pod["metadata"]["uid"])
        done = verify(target, pod, tmp_path)
        assert done.returncode == 1
        assert done.stderr.startswith("lora-operator: No operator is at work, since ")
        end(target, pod, "Failed")
        said, _ = test.communicate(timeout=630)
        assert test.returncode != 0, said
    # The Job controller hears of the pod's end by itself, and Helm may have given up before.
    job = ("job", f"{RELEASE}-test", here)
    assert eventually(lambda: client.get(*job).get("status", {}).get("failed"), "the Job has failed") == 1
    client.kubectl("delete", "job", f"{RELEASE}-test", here, "--cascade=foreground")
