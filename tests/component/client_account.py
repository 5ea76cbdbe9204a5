"""A person with the role `edit` in one namespace, as the chart aggregates it, and the client that they type."""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from tests.component.patience import DEADLINE_S, eventually
from tests.component.stage import REPOSITORY, Stage
from tests.faults.proxy import FaultProxy

from localcluster import settings, tools
from localcluster.client import Client, CommandError
from localcluster.console import Console

# Tests that were started in the background ignore Ctrl-C, and so would what they start.
_PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from lora_client.__main__ import main
sys.exit(main())
"""
CHART = REPOSITORY / "helm" / "lora-finetune-operator"


def install_roles(control_plane: Client) -> None:
    """The chart's roles for people, which the controllers add to the cluster's own."""
    helm = tools.ensure(tools.HELM, settings.cache_directory(), Console()) / "helm"
    command = [str(helm), "template", "lora", str(CHART), "--show-only", "templates/rbac-people.yaml"]
    images = [f"--set={image}.repository=registry.example/{image}" for image in ("image", "trainer.image")]
    rendered = subprocess.run([*command, *images], capture_output=True, text=True, check=True, timeout=DEADLINE_S)
    control_plane.kubectl("apply", "--filename=-", stdin=rendered.stdout)


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Somebody with the role `edit` in the stage's namespace, and nothing else."""

    stage: Stage
    kubeconfig: Path
    environment: dict[str, str] = field(default_factory=dict)

    def start(self, *arguments: str, terminal: int | None = None) -> "subprocess.Popen[bytes]":
        """The client as a process, its output in pipes or on a terminal."""
        variables = {
            **os.environ,
            "KUBECONFIG": str(self.kubeconfig),
            "PYTHONPATH": f"{REPOSITORY}/operator:{REPOSITORY}/trainer_image",
            "TERM": "xterm",
            "COLUMNS": "100",
            **self.environment,
        }
        return subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, *arguments],
            env=variables,
            stdin=subprocess.DEVNULL if terminal is None else terminal,
            stdout=subprocess.PIPE if terminal is None else terminal,
            stderr=subprocess.PIPE,
        )

    def file(self, document: object, name: str = "run.yaml") -> str:
        """A file with a manifest; its path."""
        path = self.stage.folder / name
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        return str(path)


def person(stage: Stage, proxy: FaultProxy | None = None) -> Person:
    """An account of its own with a RoleBinding to the role, once the API server honours it."""
    name, kubeconfig = stage.accounts.make({}, proxy)
    place = f"--namespace={stage.namespace}"
    account = f"{stage.namespace}:{name}"
    stage.cluster.kubectl(
        "create", "rolebinding", f"{name}-edit", "--clusterrole=edit", f"--serviceaccount={account}", place
    )

    def may() -> bool:
        try:
            user = f"--as=system:serviceaccount:{account}"
            stage.cluster.kubectl("auth", "can-i", "create", "lorafinetunes.lora-operator.io", place, user)
        except CommandError:
            return False
        return True

    eventually(may, "the role edit reaches LoRAFineTunes")
    config = yaml.safe_load(kubeconfig.read_text())
    for context in config["contexts"]:
        context["context"]["namespace"] = stage.namespace
    kubeconfig.write_text(yaml.safe_dump(config))
    return Person(stage=stage, kubeconfig=kubeconfig)
