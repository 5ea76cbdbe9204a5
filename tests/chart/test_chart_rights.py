"""The rights that the chart grants, for every variant of its values: the operator's own list, and nothing more."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.chart.objects import Manifest, Render, only, pod_of

from lora_operator.controller.checks import LEASE_RIGHTS, RIGHTS

REPOSITORY = Path(__file__).resolve().parents[2]
# Owner references that block deletion ask for this right; the operator itself never uses it.
FINALIZERS = {("lora-operator.io", "lorafinetunes/finalizers"): {"update"}}
# What people may read. The place in a queue is a subresource that can be got alone, of an API that only Kueue serves.
READ = {
    ("lora-operator.io", "lorafinetunes"): {"get", "list", "watch"},
    ("lora-operator.io", "lorafinetunes/status"): {"get", "list", "watch"},
    ("visibility.kueue.x-k8s.io", "localqueues/pendingworkloads"): {"get"},
}


def used_rights() -> dict[tuple[str, str], set[str]]:
    """What the operator's own list says that it uses, and the right that its owner references need."""
    used: dict[tuple[str, str], set[str]] = dict(FINALIZERS)
    for right in RIGHTS:
        plural = right.resource.plural + (f"/{right.subresource}" if right.subresource else "")
        used.setdefault((right.resource.group, plural), set()).add(right.verb)
    return used


def rights(role: Manifest) -> dict[tuple[str, str], set[str]]:
    return {
        (group, resource): set(rule["verbs"])
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


def test_rights_are_these_and_no_others(render: Render) -> None:
    """Exactly what the operator uses: no wildcard, no Secrets, no exec, no nodes."""
    objects = render()
    granted = rights(only(objects, "ClusterRole", "lora"))
    assert granted == used_rights()
    assert {resource for _, resource in granted} == {
        "lorafinetunes",
        "lorafinetunes/status",
        "lorafinetunes/finalizers",
        "jobs",
        "pods",
        "services",
        "events",
        "workloads",
    }
    assert not [verbs for verbs in granted.values() if "*" in verbs]
    binding = only(objects, "ClusterRoleBinding")
    assert binding["roleRef"]["name"] == "lora"
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "lora", "namespace": "lora-system"}]


VARIANTS: list[dict[str, Any]] = [
    {},
    {"replicas": 2},
    {"watch": {"namespaces": ["team-a", "team-b"]}},
    {"watch": {"namespaces": ["team-a", "lora-system"]}, "replicas": 3},
    {"replicas": 2, "serviceAccount": {"create": False, "name": "given"}},
    {"fullnameOverride": "tuner", "replicas": 2, "watch": {"namespaces": ["team-a"]}},
    {"rbac": {"create": False}, "replicas": 2},
]


@pytest.mark.parametrize("values", VARIANTS, ids=json.dumps)
def test_whatever_the_values_the_operators_account_is_granted_its_list_and_nothing_more(
    render: Render, values: dict[str, Any]
) -> None:
    """Every role that a binding gives to the service account, taken together by where it holds."""
    objects = render(**values)
    account = pod_of(objects)["serviceAccountName"]
    granted: dict[str, dict[tuple[str, str], set[str]]] = {}
    for binding in (o for o in objects if o["kind"] in ("RoleBinding", "ClusterRoleBinding")):
        (subject,) = binding["subjects"]
        assert (subject["name"], subject["namespace"]) == (account, "lora-system")
        where = binding["metadata"].get("namespace", "")
        (role,) = (
            o
            for o in objects
            if (o["kind"], o["metadata"]["name"]) == (binding["roleRef"]["kind"], binding["roleRef"]["name"])
            and o["metadata"].get("namespace", "") == where
        )
        for rule in role["rules"]:
            for what in ((group, name) for group in rule["apiGroups"] for name in rule["resources"]):
                granted.setdefault(where, {}).setdefault(what, set()).update(rule["verbs"])
    wanted: dict[str, dict[tuple[str, str], set[str]]] = {}
    if values.get("rbac", {}).get("create", True):
        wanted = {place: used_rights() for place in values.get("watch", {}).get("namespaces", [""])}
        lease = {("coordination.k8s.io", "leases"): {right.verb for right in LEASE_RIGHTS}}
        wanted["lora-system"] = {**wanted.get("lora-system", {}), **lease}
    assert granted == wanted


def test_listed_namespaces_get_a_role_each_and_the_cluster_none(render: Render) -> None:
    """With a list the operator has no right outside of it, and nobody gets one in the whole cluster."""
    objects = render(watch={"namespaces": ["team-a", "team-b"]})
    assert not [o for o in objects if o["kind"].startswith("Cluster")]
    roles = [o for o in objects if o["kind"] == "Role" and o["metadata"]["name"] == "lora"]
    assert {role["metadata"]["namespace"] for role in roles} == {"team-a", "team-b"}
    assert all(rights(role) == used_rights() for role in roles)
    bindings = [o for o in objects if o["kind"] == "RoleBinding" and o["metadata"]["name"] == "lora"]
    assert {b["metadata"]["namespace"] for b in bindings} == {"team-a", "team-b"}
    assert all(b["subjects"][0]["namespace"] == "lora-system" for b in bindings)


def test_listed_namespaces_have_roles_to_bind_people_to(render: Render) -> None:
    """The cluster's own roles hold in every namespace: only who asks for it gets them extended."""
    listed = {"namespaces": ["team-a", "team-b"]}
    roles = {
        (o["metadata"]["namespace"], o["metadata"]["name"]): rights(o)
        for o in render(watch=listed)
        if o["kind"] == "Role" and o["metadata"]["name"] not in ("lora", "lora-leader-election")
    }
    for namespace in ("team-a", "team-b"):
        view, edit = roles.pop((namespace, "lora-view")), roles.pop((namespace, "lora-edit"))
        assert view == READ
        assert set(view) | {("lora-operator.io", "lorafinetunes")} == set(edit)
    assert roles == {}
    asked = [o for o in render(watch=listed, rbac={"aggregate": True}) if o["kind"] == "ClusterRole"]
    assert {o["metadata"]["name"] for o in asked} == {"lora-view", "lora-edit"}
    assert not [o for o in render(watch=listed, rbac={"create": False}) if o["kind"].endswith(("Role", "Binding"))]


def test_people_get_their_rights_through_the_roles_of_the_cluster(render: Render) -> None:
    """Viewers read LoRAFineTunes, editors write them, and nobody but the operator writes the status."""
    objects = render()
    view, edit = only(objects, "ClusterRole", "lora-view"), only(objects, "ClusterRole", "lora-edit")
    assert rights(view) == READ
    assert set(rights(edit)) == {("lora-operator.io", "lorafinetunes")}
    aggregated = "rbac.authorization.k8s.io/aggregate-to-"
    assert {aggregated + role for role in ("view", "edit", "admin")} <= set(view["metadata"]["labels"])
    assert aggregated + "view" not in edit["metadata"]["labels"]
    assert not [o for o in render(rbac={"aggregate": False}) if o["metadata"]["name"] in ("lora-view", "lora-edit")]


def test_without_rights_of_the_charts_own_the_cluster_gets_no_role_either(render: Render) -> None:
    """Whoever grants the operator's rights themselves can still ask for those of people."""
    alone = {"create": False}
    for watch in ({}, {"namespaces": ["team-a"]}):
        assert [o["kind"] for o in render(rbac=alone, watch=watch) if "Role" in o["kind"]] == []
        asked = render(rbac={**alone, "aggregate": True}, watch=watch)
        assert [o["metadata"]["name"] for o in asked if "Role" in o["kind"]] == ["lora-view", "lora-edit"]
