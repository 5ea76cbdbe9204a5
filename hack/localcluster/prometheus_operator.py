"""The Prometheus Operator in the full cluster, by the manifests in its Go module, and a Prometheus for it to start."""

from __future__ import annotations

from typing import TYPE_CHECKING

from localcluster import client, images, settings, tools
from localcluster.client import CommandError
from localcluster.errors import ClusterError

if TYPE_CHECKING:
    from pathlib import Path

    from localcluster.console import Console
    from localcluster.settings import Places
    from localcluster.tools import Tool

NAME = "prometheus-operator"
NAMESPACE = "prometheus-operator"
DEFINITIONS = "example/prometheus-operator-crd"
PROMETHEUS_RELEASE = "3.10.0"
"""As its objects write the version of the module."""
_PROGRAMS = (
    (tools.PROMETHEUS_OPERATOR, "operator", NAME),
    (tools.PROMETHEUS_OPERATOR, "prometheus-config-reloader", "prometheus-config-reloader"),
    (tools.PROMETHEUS, "prometheus", "prometheus"),
)
_GROUP = "monitoring.coreos.com"
_MANIFESTS = "example/rbac/prometheus-operator"
# Without the monitor of itself.
_PARTS = ("service-account", "cluster-role", "cluster-role-binding", "service", "deployment")
_NAMESPACE = f"""\
apiVersion: v1
kind: Namespace
metadata:
  name: {NAMESPACE}
  labels:
    pod-security.kubernetes.io/enforce: restricted
"""
# Of the Prometheus Operator, which makes a StatefulSet of each.
_KINDS = ("prometheuses", "prometheusagents", "alertmanagers", "thanosrulers")
_TIMEOUT_S = 600


def references() -> list[str]:
    """As pods write the images: of the operator, its reloader, and Prometheus."""
    return [f"{settings.IMAGE_PREFIX}/{_name(tool, repository)}" for tool, _, repository in _PROGRAMS]


def _name(tool: Tool, repository: str) -> str:
    return f"{repository}:{tool.key.removeprefix(f'{tool.name}-')}"


def manifests(upstream: str, operator: str, reloader: str) -> str:
    """Its own manifests with the images built here, in a namespace of their own.

    Raises ClusterError where they are not what is known here.
    """
    release = f"v{tools.PROMETHEUS_OPERATOR.version}"
    for known, ours in {
        "namespace: default\n": f"namespace: {NAMESPACE}\n",
        f"image: quay.io/prometheus-operator/prometheus-operator:{release}\n": f"image: {operator}\n",
        f"quay.io/prometheus-operator/prometheus-config-reloader:{release}\n": f"{reloader}\n",
        # No Service for the kubelet, which would outlive it; no limit of 10m that makes a start take a minute.
        "--kubelet-service=kube-system/kubelet\n": "--config-reloader-cpu-limit=0\n",
    }.items():
        if known not in upstream:
            raise ClusterError(f"The manifests of {NAME} {release} lack {known.strip()!r}: they are not those known.")
        upstream = upstream.replace(known, ours)
    return f"{_NAMESPACE}---\n{upstream}"


def _upstream(module: Path) -> str:
    return "---\n".join((module / _MANIFESTS / f"{NAME}-{part}.yaml").read_text() for part in _PARTS)


def install(places: Places, console: Console, registry_port: int) -> None:
    """Build what is missing, push the images, and install the operator; returns when it is ready."""
    builder = images.LocalBuilder(cache=places.cache, console=console)
    for tool, program, repository in _PROGRAMS:
        binary = tools.ensure(tool, places.cache, console) / program
        images.provide_program(binary, f"/bin/{program}", _name(tool, repository), builder, registry_port)
    operator, reloader, prometheus = references()
    module = tools.module_folder(tools.PROMETHEUS_OPERATOR, places.cache)
    kubernetes = client.local(places.name)
    with console.step(f"install {NAME} {tools.PROMETHEUS_OPERATOR.version}"):
        # Before it starts: it leaves alone what is not served then.
        kubernetes.define(*(module / DEFINITIONS).glob("*.yaml"))
        kubernetes.kubectl("apply", "--filename=-", stdin=manifests(_upstream(module), operator, reloader))
        rollout = ("rollout", "status", f"deployment/{NAME}", f"--namespace={NAMESPACE}")
        kubernetes.kubectl(*rollout, f"--timeout={_TIMEOUT_S}s", timeout_s=_TIMEOUT_S + 30)
    console.say(f"In a Prometheus, write image: {prometheus} and version: {PROMETHEUS_RELEASE}")


def remove(places: Places, console: Console) -> None:
    """Delete what it manages, and all of itself but the definitions, since monitors and rules would go with them.

    Raises ClusterError where something that it manages does not go.
    """
    kubernetes = client.local(places.name)
    with console.step(f"remove {NAME}"):
        served = kubernetes.served()
        for kind in (kind for kind in _KINDS if f"{kind}.{_GROUP}" in served):
            try:
                kubernetes.kubectl("delete", kind, "--all", "--all-namespaces", "--timeout=60s", timeout_s=90)
            except CommandError as error:
                raise ClusterError(f"Not all {kind} could be deleted, so {NAME} stays ({error}).") from error
        module = tools.module_folder(tools.PROMETHEUS_OPERATOR, places.cache)
        command = ("delete", "--filename=-", "--ignore-not-found", "--timeout=60s")
        kubernetes.kubectl(*command, stdin=manifests(_upstream(module), "none", "none"))
