"""What else can be installed into the full cluster: controllers built from their Go modules, by the charts in them, and
what has no chart: a Prometheus, and the Prometheus Operator."""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from localcluster import client, images, prometheus, prometheus_operator, settings, tools
from localcluster.client import CommandError
from localcluster.errors import ClusterError

if TYPE_CHECKING:
    from localcluster.console import Console
    from localcluster.settings import Places
    from localcluster.tools import Tool

# Each chart names others to fetch from the internet that are here installed by themselves, if at all.
_DEPENDENCIES = re.compile(r"^dependencies:\n(?:[ -].*\n)*", re.MULTILINE)
_TIMEOUT_S = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Addon:
    """One controller. `charts` are folders of its Go module, each installed as a release of the folder's name.

    `program` is where the image has the binary, which the first chart runs. In `values`, of the first chart, `{image}`
    and `{tag}` stand for the image. `definitions` is a folder of those that no chart has; `needs` is what must be
    installed before. Objects of `kinds` can go only while the controller runs, which holds them by finalizers.
    """

    tool: Tool
    program: str
    charts: tuple[str, ...]
    namespace: str
    values: tuple[str, ...]
    definitions: str = ""
    needs: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()


_ADDONS = (
    Addon(
        tool=tools.KUEUE,
        program="/manager",
        charts=("charts/kueue",),
        namespace="kueue-system",
        values=(
            "controllerManager.manager.image.repository={image}",
            "controllerManager.manager.image.tag={tag}",
            "controllerManager.manager.image.pullPolicy=IfNotPresent",
            "controllerManager.manager.resources.requests.cpu=50m",
            "controllerManager.manager.resources.requests.memory=128Mi",
            "controllerManager.readinessProbe.initialDelaySeconds=1",
            "controllerManager.readinessProbe.periodSeconds=1",
        ),
        kinds=("localqueues", "clusterqueues", "resourceflavors"),
    ),
    Addon(
        tool=tools.JOBSET,
        program="/manager",
        charts=("charts/jobset",),
        namespace="jobset-system",
        values=(
            "image.repository={image}",
            "image.tag={tag}",
            "image.pullPolicy=IfNotPresent",
            "controller.resources.requests.cpu=50m",
        ),
    ),
    Addon(
        tool=tools.KUBEFLOW_TRAINER,
        program="/manager",
        charts=("charts/kubeflow-trainer",),
        namespace="kubeflow-system",
        values=("image.registry=", "image.repository={image}", "image.tag={tag}", "jobset.install=false"),
        needs=("jobset",),
        kinds=("trainjobs", "trainingruntimes", "clustertrainingruntimes"),
    ),
    Addon(
        tool=tools.KWOK,
        program="/usr/local/bin/kwok",
        charts=("charts/kwok", "charts/stage-fast"),
        definitions="kustomize/crd/bases",
        namespace="kube-system",
        values=("image.repository={image}", "image.tag={tag}", "hostNetwork=true"),
    ),
)
ADDONS = {addon.tool.name: addon for addon in _ADDONS}
_WITHOUT_CHART = {
    prometheus.NAME: (prometheus.install, prometheus.remove),
    prometheus_operator.NAME: (prometheus_operator.install, prometheus_operator.remove),
}
NAMES = (*ADDONS, *_WITHOUT_CHART)


def install(name: str, places: Places, console: Console, registry_port: int) -> None:
    """Build what is missing, push the image, and install or upgrade the charts; returns when the controller is ready.

    Raises ClusterError, where another add-on must come first too.
    """
    if name in _WITHOUT_CHART:
        _WITHOUT_CHART[name][0](places, console, registry_port)
        return
    addon = ADDONS[name]
    kubernetes = client.local(places.name)
    installed = releases(kubernetes)
    for other in addon.needs:
        if other not in installed:
            raise ClusterError(f"{name} needs {other}: install it first with `hack/cluster addon {other}`.")
    binary = tools.ensure(addon.tool, places.cache, console) / addon.tool.commands[0]
    tools.ensure(tools.HELM, places.cache, console)
    builder = images.LocalBuilder(cache=places.cache, console=console)
    tag = addon.tool.key.removeprefix(f"{name}-")
    images.provide_program(binary, addon.program, f"{name}:{tag}", builder, registry_port)
    values = [value.format(image=f"{settings.IMAGE_PREFIX}/{name}", tag=tag) for value in addon.values]
    module = tools.module_folder(addon.tool, places.cache)
    with console.step(f"install {name} {addon.tool.version}"):
        if addon.definitions:
            kubernetes.kubectl("apply", "--server-side", f"--filename={module / addon.definitions}")
        for number, chart in enumerate(addon.charts):
            _install(module / chart, addon.namespace, [] if number else values, kubernetes)


def remove(name: str, places: Places, console: Console) -> None:
    """Uninstall the charts, and before them what needs the controller for its end; an absent one is left so.

    Raises ClusterError where something still uses it.
    """
    if name in _WITHOUT_CHART:
        _WITHOUT_CHART[name][1](places, console)
        return
    addon = ADDONS[name]
    kubernetes = client.local(places.name)
    with console.step(f"remove {name}"):
        if Path(addon.charts[0]).name in releases(kubernetes):
            _delete_objects(addon, kubernetes)
        for chart in reversed(addon.charts):
            release = Path(chart).name
            kubernetes.helm("uninstall", release, f"--namespace={addon.namespace}", "--ignore-not-found", "--wait")


def releases(kubernetes: client.Client) -> list[str]:
    """Names of all releases of the cluster."""
    return kubernetes.helm("list", "--all-namespaces", "--short").split()


def _delete_objects(addon: Addon, kubernetes: client.Client) -> None:
    for kind in addon.kinds:
        try:
            kubernetes.kubectl("delete", kind, "--all", "--all-namespaces", "--timeout=60s", timeout_s=90)
        except CommandError as error:
            raise ClusterError(
                f"Not all {kind} could be deleted, so {addon.tool.name} stays: end what uses them first ({error})."
            ) from error


def without_dependencies(chart: str) -> str:
    """The text of a Chart.yaml with nothing to fetch."""
    return _DEPENDENCIES.sub("", chart)


def _install(chart: Path, namespace: str, values: list[str], kubernetes: client.Client) -> None:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / chart.name
        # Go's modules are read-only, and shutil keeps that.
        shutil.copytree(chart, copy, copy_function=shutil.copyfile)
        for path in (copy, *copy.rglob("*")):
            if path.is_dir():
                path.chmod(0o755)
        metadata = copy / "Chart.yaml"
        metadata.write_text(without_dependencies(metadata.read_text()))
        (copy / "Chart.lock").unlink(missing_ok=True)
        flags = [f"--namespace={namespace}", "--create-namespace", "--wait", f"--timeout={_TIMEOUT_S}s"]
        flags += [f"--set={value}" for value in values]
        try:
            kubernetes.helm("upgrade", "--install", chart.name, str(copy), *flags, timeout_s=_TIMEOUT_S + 60)
        except CommandError as error:
            raise ClusterError(f"helm did not install {chart.name}: {error}") from error
