"""What a switch of the chart renders, without a cluster: network policies, the rules on runs, the notes, helm test."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.chart.matrix import DASHBOARDS, MONITOR, NETWORK, POLICIES, RULES
from tests.chart.objects import Manifest, Render, only, pod_of, settings_of
from tests.pages.blocks import block

from lora_operator.model.names import PREFLIGHT, QUEUE_LABEL, TRAIN, child_labels
from lora_trainer.spec.progress import PORT

REPOSITORY = Path(__file__).resolve().parents[2]
LISTED = {"namespaces": ["team-a", "team-b"]}
METADATA_SERVICES = (
    ["169.254.169.254/32", "100.100.100.200/32", "168.63.129.16/32", "169.254.0.23/32", "169.254.42.42/32"],
    ["fd00:ec2::254/128", "fd20:ce::254/128", "fd00:42::42/128", "fd00:c1::a9fe:a9fe/128", "fe80::a9fe:a9fe/128"],
)
"""IPv4: of most clouds, Alibaba, what Azure's agent asks for certificates and keys, Tencent, Scaleway; IPv6: of AWS,
Google, Scaleway, Oracle, OpenStack."""


def test_chart_annotations_are_what_the_project_has() -> None:
    """Artifact Hub shows the example that the project shows."""
    chart = yaml.safe_load((REPOSITORY / "helm/lora-finetune-operator/Chart.yaml").read_text())
    annotations = chart["annotations"]
    assert all(isinstance(text, str) for text in annotations.values())
    (example,) = yaml.safe_load(annotations["artifacthub.io/crdsExamples"])
    assert example == yaml.safe_load((REPOSITORY / "examples/minimal.yaml").read_text())
    (crd,) = yaml.safe_load(annotations["artifacthub.io/crds"])
    definition = yaml.safe_load((REPOSITORY / "crds/lorafinetunes.yaml").read_text())
    assert crd["name"] == definition["metadata"]["name"]
    assert crd["kind"] == definition["spec"]["names"]["kind"]
    assert [crd["version"]] == [version["name"] for version in definition["spec"]["versions"]]


def ports(rules: list[Manifest]) -> set[int]:
    """The ports of rules on what comes in or goes out."""
    return {port["port"] for rule in rules for port in rule.get("ports", ())}


def network_policies(objects: list[Manifest]) -> dict[tuple[str, str], Manifest]:
    """Specs by namespace and name."""
    found = (o for o in objects if o["kind"] == "NetworkPolicy")
    return {(o["metadata"]["namespace"], o["metadata"]["name"]): o["spec"] for o in found}


def test_without_the_switch_nothing_restricts_the_network_or_the_runs(render: Render) -> None:
    """Both are asked for."""
    assert not [o for o in render() if o["kind"] == "NetworkPolicy" or o["kind"].startswith("Validating")]


def test_the_operators_policy_lets_through_what_it_does_and_nothing_else(render: Render) -> None:
    """Out: names, the API server, the progress of runs. In: Prometheus."""
    objects = render(networkPolicy=NETWORK, watch=LISTED)
    policy = network_policies(objects)["lora-system", "lora"]
    template = only(objects, "Deployment")["spec"]["template"]
    assert policy["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    (come_in,) = policy["ingress"]
    assert ports([come_in]) == {template["spec"]["containers"][0]["ports"][0]["containerPort"]} == {8080}
    (prometheus,) = come_in["from"]
    assert prometheus["namespaceSelector"]["matchExpressions"][0]["values"] == ["monitoring"]

    names, server, runs = policy["egress"]
    assert (ports([names]), "to" in names) == ({53}, False)
    assert [peer["ipBlock"]["cidr"] for peer in server["to"]] == NETWORK["apiServerCIDRs"]
    assert ports([server]) == {443, 6443}
    (peer,) = runs["to"]
    assert ports([runs]) == {PORT}
    assert peer["namespaceSelector"]["matchExpressions"][0]["values"] == LISTED["namespaces"]
    assert peer["podSelector"]["matchLabels"].items() <= child_labels("tone", "uid", 1).items()
    (everywhere,) = network_policies(render(networkPolicy=NETWORK))["lora-system", "lora"]["egress"][2]["to"]
    assert everywhere["namespaceSelector"] == {}


def test_each_listed_namespace_gets_the_training_pods_policy(render: Render) -> None:
    """In: peers, operator and Prometheus. Out: all but the metadata services, in both families."""
    objects = render(networkPolicy=NETWORK, watch=LISTED)
    found = {place: spec for place, spec in network_policies(objects).items() if place[1] == "lora-trainers"}
    assert {namespace for namespace, _ in found} == set(LISTED["namespaces"])
    policy = found["team-a", "lora-trainers"]
    for stage in (PREFLIGHT, TRAIN):
        assert policy["podSelector"]["matchLabels"].items() <= child_labels("tone", "uid", 1, stage).items()
    peers, scrapes = policy["ingress"]
    assert peers == {"from": [{"podSelector": policy["podSelector"]}]}
    operator, prometheus = scrapes["from"]
    assert (ports([scrapes]), prometheus["namespaceSelector"]["matchExpressions"][0]["values"]) == (
        {PORT},
        ["monitoring"],
    )
    assert operator["namespaceSelector"]["matchExpressions"][0]["values"] == ["lora-system"]
    pod = only(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert operator["podSelector"]["matchLabels"].items() <= pod.items()

    names, out = policy["egress"]
    assert (ports([names]), "to" in names) == ({53}, False), "some clouds have their DNS at a blocked address"
    assert "ports" not in out
    inside, v4, v6 = out["to"]
    assert inside == {"namespaceSelector": {}}
    assert v4["ipBlock"] == {"cidr": "0.0.0.0/0", "except": METADATA_SERVICES[0]}
    assert v6["ipBlock"] == {"cidr": "::/0", "except": METADATA_SERVICES[1]}
    free = network_policies(render(networkPolicy={**NETWORK, "blockedCIDRs": []}, watch=LISTED))
    assert free["team-a", "lora-trainers"]["egress"][1]["to"][1:] == [
        {"ipBlock": {"cidr": "0.0.0.0/0"}},
        {"ipBlock": {"cidr": "::/0"}},
    ]


def test_the_policy_for_cilium_selects_what_calls_the_api_server(render: Render, hooks: Render) -> None:
    """As the page has it, whose words on the labels could go out of date."""
    values = yaml.safe_load(block("docs/security-model.md", "extraObjects:").text)
    for given in (values, {**values, "nameOverride": "tuning"}):
        objects = render(**given, networkPolicy=NETWORK)
        policy = only(objects, "CiliumNetworkPolicy")
        assert policy["metadata"]["namespace"] == only(objects, "Deployment")["metadata"]["namespace"]
        assert policy["spec"]["egress"] == [{"toEntities": ["kube-apiserver"]}]
        selected = policy["spec"]["endpointSelector"]["matchLabels"].items()
        for owner in (only(objects, "Deployment"), only(hooks(**given), "Job")):
            assert selected <= owner["spec"]["template"]["metadata"]["labels"].items()
        assert not selected <= child_labels("tone", "uid", 1).items()


def test_helm_test_has_an_account_that_looks_and_tries_and_can_do_nothing_else(hooks: Render) -> None:
    """The Lease, and LoRAFineTunes in the operator's namespace alone; all of it goes after the test."""
    everywhere, listed = hooks(), hooks(watch=LISTED)
    lease = {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "resourceNames": ["lora"], "verbs": ["get"]}
    tries = {"apiGroups": ["lora-operator.io"], "resources": ["lorafinetunes"], "verbs": ["create"]}
    for objects in (everywhere, listed):
        assert not [o for o in objects if o["kind"].startswith("Cluster")]
        role = only(objects, "Role")
        assert (role["metadata"]["namespace"], role["rules"]) == ("lora-system", [tries, lease])
        subjects = [s["name"] for o in objects if o["kind"].endswith("Binding") for s in o["subjects"]]
        assert set(subjects) == {only(objects, "ServiceAccount")["metadata"]["name"]} == {"lora-test"}
        for o in objects:
            annotations = o["metadata"]["annotations"]
            assert annotations["helm.sh/hook"] == "test"
            assert annotations["helm.sh/hook-delete-policy"] == "before-hook-creation,hook-succeeded"
    assert hooks(rbac={"create": False}) == []


def test_helm_test_runs_the_operators_image_on_the_operators_settings(render: Render, hooks: Render) -> None:
    """After all that its pod needs is there."""
    objects = hooks()
    job = only(objects, "Job")
    weights = {o["kind"]: int(o["metadata"]["annotations"]["helm.sh/hook-weight"]) for o in objects}
    assert all(weight < weights["Job"] for kind, weight in weights.items() if kind != "Job")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["image"] == pod_of(render())["containers"][0]["image"]
    assert container["args"] == [
        "verify",
        "--config=/etc/lora-operator/config.yaml",
        "--namespace=lora-system",
        "--sample=/etc/lora-operator-test/sample.yaml",
    ]
    mounts = {v["name"]: v.get("configMap", {}).get("name") for v in job["spec"]["template"]["spec"]["volumes"]}
    assert (mounts["config"], mounts["sample"]) == ("lora", "lora-test")
    assert "trainerImage" in settings_of(render())


def test_the_sample_fits_the_values(hooks: Render) -> None:
    """It trains where the cluster allows it, and has a queue where one is required."""

    def sample(**values: Any) -> Manifest:
        return dict(yaml.safe_load(only(hooks(**values), "ConfigMap")["data"]["sample.yaml"]))

    assert "resources" not in sample()["spec"]
    assert sample(config={"allowCPU": True})["spec"]["resources"] == {"gpus": 0}
    assert "labels" not in sample()["metadata"]
    assert QUEUE_LABEL in sample(policies=POLICIES)["metadata"]["labels"]
    assert "labels" not in sample(policies=POLICIES, defaults={"queue": "gpus"})["metadata"]


def test_a_pod_of_helm_test_has_what_the_operators_has_for_a_mesh_and_is_not_taken_for_one(
    render: Render, hooks: Render
) -> None:
    """A sidecar would keep it from ending. It is no target of the operator's Service, monitors or policies."""
    mesh = {
        "podAnnotations": {"sidecar.istio.io/inject": "false"},
        "podLabels": {"team": "ml"},
        "priorityClassName": "p",
    }
    pods = {kind: only(found(**mesh), kind) for kind, found in (("Deployment", render), ("Job", hooks))}
    made = {kind: owner["spec"]["template"] for kind, owner in pods.items()}
    for template in made.values():
        assert template["metadata"]["annotations"]["sidecar.istio.io/inject"] == "false"
        assert template["metadata"]["labels"]["team"] == "ml"
        assert template["spec"]["priorityClassName"] == "p"
    selected = pods["Deployment"]["spec"]["selector"]["matchLabels"].items()
    assert selected <= made["Deployment"]["metadata"]["labels"].items()
    assert not selected <= made["Job"]["metadata"]["labels"].items()
    assert 120 < pods["Job"]["spec"]["activeDeadlineSeconds"] < 300, "before helm test's own end, which gives no reason"


def test_of_what_is_scraped_the_notes_say_nothing(render: Render) -> None:
    """By the chart's own monitor."""
    scraped = {"prometheusRule": RULES, "serviceMonitor": MONITOR, "podMonitor": MONITOR}
    notes = next_steps(render, metrics={**scraped, "grafanaDashboard": DASHBOARDS})
    assert not [words for words in ("LoRAOperatorDown", "cannot fire", "can fire", "runMetrics") if words in notes]
    assert "prometheusNamespaces" not in next_steps(render, metrics=scraped, networkPolicy=NETWORK)


NO_RUNS = {"runMetrics": False}
NEXT: tuple[tuple[dict[str, Any], str], ...] = (
    ({"metrics": {"serviceMonitor": MONITOR}}, "nothing is scraped until a Prometheus selects the ServiceMonitor"),
    ({"metrics": {"podMonitor": MONITOR}}, "-o jsonpath='{.items[*].spec.podMonitorSelector}'"),
    (
        {"metrics": {"prometheusRule": RULES}},
        "no alert fires until a Prometheus selects the PrometheusRule by its labels",
    ),
    ({"metrics": {"prometheusRule": RULES}}, "-o jsonpath='{.items[*].spec.ruleSelector}'"),
    ({"metrics": {"grafanaDashboard": DASHBOARDS}}, "shows LoRA fleet and LoRA run, at /d/lora-fleet and /d/lora-run."),
    ({"defaults": {"cacheClaim": "hub"}}, "Each namespace with runs needs the PersistentVolumeClaim hub."),
    (
        {"defaults": {"cacheClaim": "hub", "checkpointClaim": "saves", "queue": "gpus"}},
        "needs the PersistentVolumeClaim hub, the PersistentVolumeClaim saves, the LocalQueue gpus.",
    ),
    (
        {"config": {"caBundleConfigMap": "ca"}, "imagePullSecrets": [{"name": "registry"}]},
        "Each namespace with runs needs the ConfigMap ca with ca.crt, the Secret registry.",
    ),
    ({"trainer": {"serviceAccountName": "identity"}}, "needs the ServiceAccount identity."),
    ({"watch": LISTED}, "kubectl -n team-a create rolebinding lora-edit --role=lora-edit --group="),
    ({"rbac": {"create": False}}, "grant the service account lora the rights that docs/install.md lists"),
    ({"replicas": 0}, "replicas is 0: no operator runs."),
    ({"policies": POLICIES}, "kubectl describe validatingadmissionpolicy lora-runs"),
    ({"policies": POLICIES}, "In the run above model.uri must begin with hf://acme/ or pvc://models/."),
    ({"networkPolicy": NETWORK}, "is to be applied in each namespace with runs:"),
    ({"networkPolicy": NETWORK}, "it has an effect only where the network plugin enforces policies"),
    ({"metrics": {"prometheusRule": RULES}}, "LoRAOperatorDown fires as long as nothing scrapes the operator: set"),
    (
        {"metrics": {"prometheusRule": RULES, "serviceMonitor": MONITOR}},
        "cannot fire as long as nothing scrapes the training pods: set metrics.podMonitor.enabled",
    ),
    (
        {"metrics": {"prometheusRule": RULES, "podMonitor": MONITOR}, "config": NO_RUNS},
        "with config.runMetrics: false no alert about a run's state can fire",
    ),
    (
        {"metrics": {"grafanaDashboard": DASHBOARDS}, "config": NO_RUNS},
        "With config.runMetrics: false both list no runs",
    ),
    ({"rbac": {"create": False}}, "admin roles know no LoRAFineTunes either: set rbac.aggregate to true"),
    (
        {"networkPolicy": {**NETWORK, "prometheusNamespaces": []}, "metrics": {"prometheusRule": RULES}},
        "name its namespace in networkPolicy.prometheusNamespaces.",
    ),
)


# Helm prints notes where there is a cluster; an object of the user's own may hold what the notes are made of.
NOTES = {
    "apiVersion": "v1",
    "kind": "Secret",
    "metadata": {"name": "notes"},
}


def next_steps(render: Render, template: str = "lora-operator.nextSteps", **values: Any) -> str:
    """The end of the notes, or what another template makes."""
    notes = {**NOTES, "data": {"next": f'{{{{ include "{template}" . | b64enc }}}}'}}
    secret = only(render(**values, extraObjects=[notes]), "Secret")
    return base64.b64decode(secret["data"]["next"] or "").decode()


HUB_MODEL, CLAIM_MODEL = "hf://HuggingFaceTB/SmolLM2-135M-Instruct", "pvc://models/SmolLM2-135M-Instruct"


@pytest.mark.parametrize(
    ("config", "model", "place"),
    [
        ({}, HUB_MODEL, "from the Hugging Face Hub:"),
        ({"hubEndpoint": "https://hub.example"}, HUB_MODEL, "from https://hub.example:"),
        ({"offline": True}, CLAIM_MODEL, "in its folder SmolLM2-135M-Instruct:"),
        ({"offline": True, "hubEndpoint": "https://hub.example"}, CLAIM_MODEL, "(config.offline)"),
    ],
)
def test_the_first_run_of_the_notes_takes_its_model_from_where_it_may(
    render: Render, config: dict[str, Any], model: str, place: str
) -> None:
    """A Hub that is not asked at all has none."""
    notes = next_steps(render, "lora-finetune-operator/templates/NOTES.txt", config=config)
    assert place in notes.partition("kubectl -n default apply")[0]
    manifests = notes.partition("<<'YAML'\n")[2].partition("\nYAML\n")[0]
    *_, run = yaml.safe_load_all(manifests)
    assert run["spec"]["model"] == {"uri": model}


UNBENT: dict[str, Any] = {"podMonitorSelector": {}, "serviceMonitorSelector": {}, "ruleSelector": {}}
EXEMPT = [{"group": "monitoring.coreos.com", "resource": "podmonitors", "namespace": "lora-system"}]
BENT: list[tuple[dict[str, Any], set[str]]] = [
    ({}, set()),
    ({"ignoreNamespaceSelectors": True}, {"PodMonitor"}),
    ({"overrideHonorLabels": True}, {"ServiceMonitor"}),
    ({"enforcedNamespaceLabel": "tenant"}, set()),
    ({"enforcedNamespaceLabel": "namespace"}, {"ServiceMonitor", "PodMonitor", "PrometheusRule"}),
    ({"enforcedNamespaceLabel": "namespace", "excludedFromEnforcement": EXEMPT}, {"ServiceMonitor", "PrometheusRule"}),
]


def monitor_notes(render: Render, *specs: Manifest, **values: Any) -> str:
    """What the notes say of the monitors where the cluster has these Prometheuses."""
    found = [{"metadata": {"namespace": "lora-system"}, "spec": {**UNBENT, **spec}} for spec in specs]
    given = base64.b64encode(json.dumps(found).encode()).decode()  # what has spaces would be broken into lines
    arguments = f'(dict "root" . "prometheuses" ("{given}" | b64dec | fromJsonArray))'
    told = {"next": f'{{{{ include "lora-operator.monitorNotesOf" {arguments} | b64enc }}}}'}
    metrics = {"serviceMonitor": MONITOR, "podMonitor": MONITOR, "prometheusRule": RULES}
    secret = only(render(**values, metrics=metrics, extraObjects=[{**NOTES, "data": told}]), "Secret")
    return base64.b64decode(secret["data"]["next"]).decode()


@pytest.mark.parametrize(("spec", "bent"), BENT)
def test_a_prometheus_that_keeps_to_the_monitors_namespace_does_not_count_as_one_that_scrapes_runs(
    render: Render, spec: dict[str, Any], bent: set[str]
) -> None:
    """As OpenShift's for user workloads does; another one beside it, or runs beside the operator, make it good."""
    kinds = {"ServiceMonitor", "PodMonitor", "PrometheusRule"}

    def told(notes: str) -> set[str]:
        assert "NO Prometheus" not in notes
        assert {kind for kind in kinds if f"selects the {kind}; docs/" in notes} | bending(notes) == kinds
        return bending(notes)

    def bending(notes: str) -> set[str]:
        return {kind for kind in kinds if f"selects the {kind}, but by its ignoreNamespaceSelectors" in notes}

    assert told(monitor_notes(render, spec)) == bent
    assert told(monitor_notes(render, spec, {})) == set()
    assert told(monitor_notes(render, spec, watch={"namespaces": ["lora-system"]})) == set()


@pytest.mark.parametrize(("values", "sentence"), NEXT)
def test_the_notes_name_the_next_step_for_what_is_switched_on(
    render: Render, values: dict[str, Any], sentence: str
) -> None:
    """With the command to type, where there is one; by default there is none."""
    assert sentence in next_steps(render, **values)
    assert next_steps(render) == ""
