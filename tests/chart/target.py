"""The chart as a release on a real API server; no node runs its pods there."""

import dataclasses
import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from localcluster.client import Client

CHART = Path(__file__).resolve().parents[2] / "helm/lora-finetune-operator"
RELEASE = "lora-chart-test"
IMAGES = (
    "--set=image.repository=registry.example.com/operator",
    "--set=trainer.image.repository=registry.example.com/trainer",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The operator's namespace, which enforces the restricted Pod Security Standard, and that of a team with runs."""

    client: Client
    system: str
    team: str

    def install(self, *flags: str, values: Mapping[str, Any] | None = None, chart: Path = CHART) -> str:
        """`helm upgrade --install`; the definition may be there already, put by kubectl."""
        release = ("upgrade", "--install", RELEASE, str(chart), f"--namespace={self.system}", "--take-ownership")
        given = ("--values=-",) if values is not None else ()
        return self.client.helm(*release, *IMAGES, *flags, *given, stdin=yaml.safe_dump(dict(values or {})))

    def uninstall(self) -> None:
        self.client.helm("uninstall", RELEASE, f"--namespace={self.system}", "--ignore-not-found")

    def may(self, verb: str, what: str, namespace: str, *, name: str = "") -> bool:
        """Whether the operator has a right; `what` is group/resource or group/resource/subresource."""
        group, resource, subresource = (*what.split("/"), "")[:3]
        attributes = {"verb": verb, "group": group, "resource": resource, "subresource": subresource}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": f"system:serviceaccount:{self.system}:{RELEASE}",
                "resourceAttributes": {**attributes, "namespace": namespace, "name": name},
            },
        }
        answer = json.loads(self.client.kubectl("create", "-f", "-", "--output=json", stdin=json.dumps(review)))
        return bool(answer["status"]["allowed"])

    def kubeconfig(self, account: str, folder: Path) -> Path:
        """A kubeconfig of a service account of the operator's namespace."""
        config = yaml.safe_load(self.client.kubeconfig.read_text())
        token = self.client.kubectl("create", "token", account, f"--namespace={self.system}").strip()
        config["users"][0]["user"] = {"token": token}
        path = folder / f"{account}.kubeconfig"
        path.write_text(yaml.safe_dump(config))
        return path


@contextmanager
def make_target(control_plane: Client, helm: Path) -> Iterator[Target]:
    """Two namespaces, removed afterwards with what is left of the release; `helm` is the folder of the Helm to use."""
    unique = uuid.uuid4().hex[:8]
    client = dataclasses.replace(control_plane, path=f"{helm}:{control_plane.path}")
    made = Target(client=client, system=f"chart-{unique}", team=f"team-{unique}")
    for name in (made.system, made.team):
        control_plane.kubectl("create", "namespace", name)
    control_plane.kubectl("label", "namespace", made.system, "pod-security.kubernetes.io/enforce=restricted")
    try:
        yield made
    finally:
        made.uninstall()
        for name in (made.system, made.team):
            control_plane.kubectl("delete", "namespace", name, "--wait=false")
