"""The pages' way to an adapter of an 8B model, up to the node: what they type is enough, also for a tainted GPU pool.

A real scheduler finds the node; nothing runs there, so what is typed afterwards has its test in
tests/e2e/test_newcomer.py.
"""

import dataclasses
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.chart.helms import built
from tests.chart.target import CHART
from tests.component.client_account import Person, install_roles, person
from tests.component.documents import Object
from tests.component.patience import eventually
from tests.component.stage import REPOSITORY, Stage, node_metadata
from tests.faults.one_run import Run
from tests.pages.blocks import block, blocks_of
from tests.pages.executed import execute
from tests.unit.reports import make_report

from localcluster import tools
from lora_operator.model.names import PREFLIGHT, TRAIN

NAME = "support-tone"
TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
REFERENCES = {
    "persistentVolumeClaim": "persistentvolumeclaims",
    **dict.fromkeys(("secret", "secretKeyRef", "secretRef"), "secrets"),
    **dict.fromkeys(("configMap", "configMapKeyRef", "configMapRef"), "configmaps"),
}
ROOM = {"cpu": "64", "memory": "256Gi", "pods": "100", "ephemeral-storage": "1Ti"}
RUN = '  model: {uri: "hf://meta-llama/Llama-3.1-8B-Instruct"'


@pytest.fixture
def pool(stage: Stage) -> Iterator[str]:
    """A node without GPUs, one with a GPU and the taint that keeps others off it, and a volume; the second's name."""
    _offer(stage, stage.node, {"unschedulable": False}, ROOM)
    name = f"gpu-{stage.namespace}"
    stage.api.post("/api/v1/nodes", {"metadata": node_metadata(name)})
    _offer(stage, name, {"taints": [TAINT]}, ROOM | {"nvidia.com/gpu": "1"})
    volume = {
        "capacity": {"storage": "20Gi"},
        "accessModes": ["ReadWriteOnce"],
        "hostPath": {"path": "/nowhere"},
        "claimRef": {"namespace": stage.namespace, "name": "adapters"},
    }
    stage.api.post("/api/v1/persistentvolumes", {"metadata": {"name": name}, "spec": volume})
    try:
        yield name
    finally:
        stage.api.delete(f"/api/v1/nodes/{name}")
        stage.api.delete(f"/api/v1/persistentvolumes/{name}")


def _offer(stage: Stage, node: str, spec: Object, room: Object) -> None:
    path = f"/api/v1/nodes/{node}"
    stage.api.patch(f"{path}/status", {"status": {"capacity": room, "allocatable": room}})
    stage.api.patch(path, {"spec": spec})


@pytest.fixture
def user(stage: Stage) -> Person:
    """Somebody with the role `edit` in a team's namespace."""
    install_roles(stage.cluster)
    return person(stage)


def of_the_chart(*flags: str) -> Object:
    """The defaults of runs as the chart gives them to the operator."""
    images = [f"--set={each}.repository=registry.example.com/x" for each in ("image", "trainer.image")]
    rest = ("--show-only=templates/configmap.yaml", "--kube-version=1.31.0")
    rendered = built(tools.HELM).run("template", "x", str(CHART), *images, *flags, *rest)
    config = yaml.safe_load(yaml.safe_load(rendered)["data"]["config.yaml"])
    return {key: value for key, value in config.items() if key.startswith("default")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What a page says: flags for the installation on tainted nodes, and the commands until the run is there."""

    flags: list[str]
    commands: str


def of_the_readme(folder: Path) -> Shown:
    """Its first lines of YAML, and what it has somebody type in the team's namespace."""
    (folder / "run.yaml").write_text(block("README.md", RUN).text)
    typed = block("README.md", "kubectl create secret generic hf-token").commands
    return Shown(
        flags=["--values", str(REPOSITORY / "examples/values/small.yaml")], commands=typed.partition("kubectl wait")[0]
    )


def of_the_quickstart(folder: Path) -> Shown:
    """Its steps until the run is watched, and files by the names it gives them; the tolerations of docs/install.md."""
    page = "docs/quickstart.md"
    steps, watched, _ = (REPOSITORY / page).read_text().partition("\n4. Watch it")
    assert watched
    shown = blocks_of(page, steps)
    for each in (found for found in shown if found.language == "yaml"):
        before = "\n".join(steps.splitlines()[: each.line])
        (folder / re.findall(r"as `(\S+\.yaml)`", before)[-1]).write_text(each.text)
    defaults = yaml.safe_load(block("docs/install.md", "defaults:").text)["defaults"]
    return Shown(
        flags=[f"--set-json=defaults.tolerations={json.dumps(defaults['tolerations'])}"],
        commands="".join(each.commands for each in shown),
    )


@pytest.mark.parametrize("page", [of_the_readme, of_the_quickstart])
def test_an_8b_run_reaches_a_tainted_gpu_by_what_the_page_types(
    stage: Stage, pool: str, user: Person, tmp_path: Path, page: Any
) -> None:
    """By the chart's defaults: the run says nothing of taints. Every object that its pods name is there."""
    client = dataclasses.replace(stage.cluster, kubeconfig=user.kubeconfig)
    copy = tmp_path / "clone"
    copy.mkdir()
    (copy / "examples").symlink_to(REPOSITORY / "examples")
    shown = page(copy)
    stage.start(**of_the_chart(*shown.flags))
    execute(shown.commands, client.environment, copy)
    run = Run(stage=stage, name=NAME)
    first = placed(run, PREFLIGHT)
    stage.run_pod(first)
    stage.end_pod(first, 0, make_report().to_message())
    pod = placed(run, TRAIN)
    assert pod["spec"]["nodeName"] == pool
    (container,) = pod["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    needed = {*needs(first["spec"]), *needs(pod["spec"])}
    assert {("secrets", "hf-token"), ("persistentvolumeclaims", "adapters")} <= needed
    assert [what for what in needed if not stage.api.get(stage.path(*what))["metadata"]["uid"]] == []


def placed(run: Run, of: str) -> Object:
    """Wait until the scheduler has found a node for the pod of a stage."""

    def look() -> Object | None:
        return next((pod for pod in run.children("pods", of) if pod["spec"].get("nodeName")), None)

    try:
        return eventually(look, "the pod has a node")
    except AssertionError as error:
        error.add_note(json.dumps(run.status, indent=1))
        raise


def needs(part: Any) -> Iterator[tuple[str, str]]:
    """The objects of its namespace without which a kubelet does not start a pod: their kinds and names."""
    items = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
    for key, value in items:
        if key in REFERENCES:
            yield REFERENCES[key], value.get("claimName") or value.get("secretName") or value["name"]
        elif key == "imagePullSecrets":
            yield from (("secrets", each["name"]) for each in value)
        else:
            yield from needs(value)
