"""The health checks of docs/operate.md, as they stand there to be pasted, and what they are to say."""

import re
from pathlib import Path

import yaml
from tests.unit.builders import Object

from lora_operator.decide.states import Group

PAGE = Path(__file__).resolve().parents[2] / "docs/operate.md"
ARGO_KEY = "resource.customizations.health.lora-operator.io_LoRAFineTune"
# For Argo CD, and for Flux, which knows no suspension.
HEALTH = {
    Group.WAITING: ("Progressing", "InProgress"),
    Group.HELD: ("Suspended", "InProgress"),
    Group.RUNNING: ("Progressing", "InProgress"),
    Group.RETRYING: ("Progressing", "InProgress"),
    Group.FAILING: ("Progressing", "InProgress"),
    Group.SUCCEEDED: ("Healthy", "Current"),
    Group.FAILED: ("Degraded", "Failed"),
}


def argo_command() -> tuple[list[str], str]:
    """The arguments of kubectl, and the patch that is given to it."""
    command, patch = re.findall(
        r"^kubectl (patch .*) <<'YAML'\n(.*?)^YAML$", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )[0]
    return command.split(), patch


def argo_check() -> str:
    """The script."""
    return str(yaml.safe_load(argo_command()[1])["data"][ARGO_KEY])


def flux_check() -> Object:
    """Which kind is checked, and the expressions."""
    shown = re.findall(r"(?ms)^```yaml\n(.*?)^```$", PAGE.read_text())
    (manifest,) = [block for block in shown if "healthCheckExprs" in block]
    (check,) = yaml.safe_load(manifest)["spec"]["healthCheckExprs"]
    return dict(check)
