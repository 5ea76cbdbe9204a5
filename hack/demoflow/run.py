"""The quickstart in the cluster: the chart, the inputs, the resource, and waiting for its end."""

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demoflow import progress
from demoflow.errors import DemoError
from localcluster import settings
from localcluster.client import CommandError

if TYPE_CHECKING:
    from demoflow.cluster import Images
    from localcluster.client import Client
    from localcluster.console import Console

EXAMPLES = settings.REPOSITORY / "examples"
CHART = settings.REPOSITORY / "helm" / "lora-finetune-operator"
RELEASE = "lora-finetune-operator"
RELEASE_NAMESPACE = "lora-system"
NAMESPACE = "lora-demo"
QUICKSTART_NAME = "support-tone"
_MADE_BY = "made-by=lora-demo"
# Each look is a process of its own, and the processor is busy with the training.
_POLL_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The resource that the demo follows; `note` says why its name is not the quickstart's, or is empty."""

    name: str
    note: str


def install_chart(client: "Client", images: "Images", endpoint: str, *flags: str, timeout_s: int) -> None:
    """`helm upgrade --install`, with the images, the Hub's address and `flags`; wait until the operator is ready.

    Raises DemoError where the user's own cluster has that release from somebody else.
    """
    values = {
        **_image_values("image", images.operator),
        **_image_values("trainer.image", images.trainer),
        **_image_values("preflight.image", images.preflight or images.trainer),
        "config.hubEndpoint": endpoint,
    }
    marks: tuple[str, ...] = ()
    if client.name is None:
        _require_own_release(client)
        marks = (f"--labels={_MADE_BY}",)
    client.helm(
        *("upgrade", "--install", RELEASE, str(CHART), f"--namespace={RELEASE_NAMESPACE}", "--create-namespace"),
        # As text: a tag of digits alone would arrive as a number.
        *(f"--set-string={key}={value}" for key, value in values.items()),
        *flags,
        *marks,
        *("--wait", f"--timeout={timeout_s}s"),
        timeout_s=timeout_s + 30,
    )


def _require_own_release(client: "Client") -> None:
    """Raise DemoError where the release exists and was not made here: its settings would be lost."""
    ask = ("list", "--all", f"--namespace={RELEASE_NAMESPACE}", f"--filter=^{RELEASE}$", "--output=json")
    if json.loads(client.helm(*ask)) and not json.loads(client.helm(*ask, f"--selector={_MADE_BY}")):
        raise DemoError(
            f"Release {RELEASE} in namespace {RELEASE_NAMESPACE} was not installed by the demo, whose settings would "
            "replace its own: uninstall it first (definition, runs and adapters stay), or use another cluster."
        )


def _image_values(prefix: str, reference: str) -> dict[str, str]:
    repository, _, tag = reference.rpartition(":")
    return {f"{prefix}.repository": repository, f"{prefix}.tag": tag}


def start(client: "Client") -> Started:
    """Apply the inputs and the quickstart, or a copy under a name of its own where the name is taken already."""
    if not _exists(client, "namespace", NAMESPACE):
        client.kubectl("create", "namespace", NAMESPACE)
    client.kubectl("apply", f"--namespace={NAMESPACE}", f"--filename={EXAMPLES / 'quickstart-inputs.yaml'}")
    found = client.get("lorafinetunes", f"--namespace={NAMESPACE}")["items"]
    present = {item["metadata"]["name"]: item for item in found}
    chosen = choose_name(present)
    if chosen.name not in present:
        manifest = renamed((EXAMPLES / "quickstart.yaml").read_text(encoding="utf-8"), chosen.name)
        client.kubectl("apply", f"--namespace={NAMESPACE}", "--filename=-", stdin=manifest)
    return chosen


def choose_name(present: dict[str, dict[str, Any]]) -> Started:
    """Return the first name of support-tone, support-tone-2, ... that is free, or that still runs."""
    number = 1
    while True:
        name = QUICKSTART_NAME if number == 1 else f"{QUICKSTART_NAME}-{number}"
        if name not in present:
            last = QUICKSTART_NAME if number == 2 else f"{QUICKSTART_NAME}-{number - 1}"
            note = "" if number == 1 else f"{last} is finished and stays as it is, so this run is {name}"
            return Started(name=name, note=note)
        if not progress.has_ended(present[name]):
            return Started(name=name, note=f"{name} is there already and has not ended: following it")
        number += 1


def renamed(manifest: str, name: str) -> str:
    """Return the quickstart under another name, with an output folder of that name."""
    return re.sub(rf"\b{QUICKSTART_NAME}\b", name, manifest)


def follow(client: "Client", name: str, console: "Console", *, timeout_s: int) -> dict[str, Any]:
    """Wait for the end of the run, showing what it does; return the resource. Raises DemoError if the run failed."""
    deadline_s = time.monotonic() + timeout_s
    with console.step(f"train {name}") as step:
        while True:
            resource = client.get("lorafinetune", name, f"--namespace={NAMESPACE}")
            if progress.has_ended(resource):
                break
            step.detail(progress.line(resource))
            if time.monotonic() > deadline_s:
                raise DemoError(
                    f"{name} has not ended after {timeout_s} s ({progress.line(resource)}); it goes on: "
                    f"kubectl -n {NAMESPACE} get lft {name} -w"
                )
            time.sleep(_POLL_S)
        if not progress.is_complete(resource):
            raise DemoError(f"{name} failed, {progress.failure(resource)}")
        step.detail(f"{resource['status']['results']['steps']} steps on {resource['status']['resolved']['device']}")
    return resource


def columns(client: "Client", name: str) -> str:
    """Return what `kubectl get lft -o wide` shows."""
    return client.kubectl("get", "lorafinetune", name, f"--namespace={NAMESPACE}", "--output=wide").rstrip()


def local_folder(client: "Client", artifact_uri: str) -> str | None:
    """Return the adapter's folder on this machine, or None where the claim's volume is not a folder of it."""
    claim, _, path = artifact_uri.removeprefix("pvc://").partition("/")
    volume_name = client.get("persistentvolumeclaim", claim, f"--namespace={NAMESPACE}")["spec"].get("volumeName", "")
    try:
        spec = client.get("persistentvolume", volume_name)["spec"]
    except CommandError:
        return None  # in a cluster of their own, users often may not read volumes
    folder = Path(spec.get("local", {}).get("path", "/nonexistent")) / path
    return str(folder) if folder.is_dir() else None


def _exists(client: "Client", kind: str, name: str) -> bool:
    return bool(client.kubectl("get", kind, name, "--ignore-not-found", "--output=name").strip())
