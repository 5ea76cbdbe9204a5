"""An earlier operator from this repository's history, what another one left behind, and the definition that it knew.

The latter two were recorded on a control plane: the definition without descriptions, the runs with their statuses and
the objects that were rendered for them.
"""

import io
import json
import re
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.component.documents import Object
from tests.component.patience import eventually
from tests.component.stage import QUICK, REPOSITORY, Stage
from tests.faults.one_run import Run

from localcluster.api import ApiError
from localcluster.client import Client
from lora_operator.cluster.api import Resource
from lora_operator.running.self_check import Right
from lora_trainer.contract.names import run_suffix

RECORDED = Path(__file__).with_name("earlier_release")
EARLIER_DEFINITION = RECORDED / "definition.yaml"
DEFINITION = REPOSITORY / "crds" / "lorafinetunes.yaml"
CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/lorafinetunes.lora-operator.io"
# The last one that gave each attempt a ConfigMap.
EARLIER_COMMIT = "a7989e66db32d3de9bac91dc10c0f0278fa59dd1"
_SOURCES = ("operator", "trainer_image/lora_trainer", "helm")
_ASK = """
import dataclasses, json, sys
from lora_operator.running.self_check import RIGHTS
from lora_operator.views import config
known = {field.name for field in dataclasses.fields(config.OperatorConfig)}
unknown = [key for key in sys.argv[1:] if config._field_name(key) not in known]
print(json.dumps({"rights": [dataclasses.asdict(right) for right in RIGHTS], "unknown": unknown}))
"""
_TIME = re.compile(r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_PLURALS = {"ConfigMap": "configmaps", "Service": "services", "Job": "jobs"}


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierOperator:
    """Where its code and chart lie, the rights that the chart grants it, and the tests' settings unknown to it."""

    sources: Path
    rights: tuple[Right, ...]
    unknown: tuple[str, ...]

    def start(self) -> dict[str, Any]:
        """What `Stage.start` needs to start it."""
        return {"sources": self.sources, "rights": self.rights, **dict.fromkeys(self.unknown)}


def take_from_history(folder: Path) -> EarlierOperator:
    """Lay the earlier operator's code into a folder; needs the repository's history, as a full clone has it."""
    command = ["git", "-C", str(REPOSITORY), "archive", EARLIER_COMMIT, *_SOURCES]
    archive = subprocess.run(command, capture_output=True, check=False)
    if archive.returncode != 0:
        pytest.skip(
            f"this clone is without the history of commit {EARLIER_COMMIT[:10]}: git fetch --unshallow brings it"
        )
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    environment = {"PYTHONPATH": f"{folder}/operator:{folder}/trainer_image"}
    command = [sys.executable, "-c", _ASK, *QUICK]
    answer = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)
    rights = (Right(**{**right, "resource": Resource(**right["resource"])}) for right in answer["rights"])
    return EarlierOperator(sources=folder, rights=tuple(rights), unknown=tuple(answer["unknown"]))


def install_definition(control_plane: Client, stage: Stage, file: Path) -> None:
    """Have the API server serve LoRAFineTunes by this definition, as `kubectl apply --server-side` does."""
    control_plane.kubectl("apply", "--server-side", "--force-conflicts", f"--filename={file}")
    wanted = "pendingTimeoutSeconds" in file.read_text()
    eventually(lambda: _knows_pending_timeout(stage) is wanted, "the API server serves the definition")


def _knows_pending_timeout(stage: Stage) -> bool | None:
    """Whether a field that the earlier definition lacks is kept; None while nothing is served."""
    spec = {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "hf://a/c"}, "output": {"uri": "pvc://d/e"}}
    probe = {"apiVersion": "lora-operator.io/v1alpha1", "kind": "LoRAFineTune", "metadata": {"name": "probe"}}
    try:
        path = stage.path("lorafinetunes") + "?dryRun=All"
        stored = stage.api.post(path, {**probe, "spec": {**spec, "pendingTimeoutSeconds": 60}})
    except ApiError as error:
        if error.status in (404, 429, 503):
            return None
        raise
    return "pendingTimeoutSeconds" in stored["spec"]


def restore(stage: Stage) -> dict[str, Run]:
    """Make the recorded runs again, as the earlier operator would have left them in this namespace; by name.

    Their Jobs make pods, and the statuses name those. What the pods do is left to the caller. The last of the recorded
    times is the present one: with the true ones every time to live and every deadline would have passed.
    """
    recorded = yaml.safe_load(_as_of_now((RECORDED / "runs.yaml").read_text()))
    return {name: _restore(stage, name, objects) for name, objects in recorded.items()}


def _as_of_now(text: str) -> str:
    times = {found: datetime.fromisoformat(found) for found in _TIME.findall(text)}
    passed = datetime.now(UTC) - max(times.values())
    return _TIME.sub(lambda match: f"{times[match[0]] + passed:%Y-%m-%dT%H:%M:%SZ}", text)


def _restore(stage: Stage, name: str, objects: Object) -> Run:
    wanted, children = objects["finetune"], objects["children"]
    uid = wanted["metadata"].pop("uid")
    made = stage.api.post(stage.path("lorafinetunes"), {k: v for k, v in wanted.items() if k != "status"})
    replacements = {
        uid: made["metadata"]["uid"],
        f"-{run_suffix(uid)}-": f"-{run_suffix(made['metadata']['uid'])}-",
        "recorded": stage.namespace,
    }
    for child in children:
        stage.api.post(stage.path(_PLURALS[child["kind"]]), _replaced(child, replacements))
    run, status = Run(stage=stage, name=name), wanted["status"]
    if "podName" in status:
        # An index beyond 0 does not lead; the names of pods end with letters of chance.
        leader = f"-0-{status['podName'].rpartition('-')[2]}"
        pod = eventually(lambda: next((p for p in run.pods if "-0-" in p["metadata"]["name"]), None), "its pod is made")
        replacements[leader] = f"-0-{pod['metadata']['name'].rpartition('-')[2]}"
    stage.api.patch(stage.path("lorafinetunes", name, "status"), {"status": _replaced(status, replacements)})
    return run


def _replaced(document: Any, replacements: dict[str, str]) -> Any:
    text = yaml.safe_dump(document, width=10_000)
    for old, new in replacements.items():
        text = text.replace(old, new)
    return yaml.safe_load(text)
