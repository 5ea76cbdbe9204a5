"""What README.md and docs/ show, on a real API server: manifests, lines of kubectl, what is printed of a run."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from tests.component.documents import Object
from tests.component.stage import Stage
from tests.pages.blocks import BLOCKS, Block
from tests.pages.typed import typed

from localcluster.client import Client, CommandError
from lora_trainer.spec.manifest import API_VERSION

CHECKED = [each for each in BLOCKS if not each.reason]
OURS = ("v1", API_VERSION)
DEFINITION = "lorafinetunes.lora-operator.io"
# Flags of kubectl whose value is an argument of its own.
_WITH_VALUE = frozenset(("-n", "--namespace"))
_OF_TWO = frozenset(("create", "rollout", "top"))


def manifests(shown: Block) -> list[Object]:
    """What can be applied without another project's definitions."""
    documents = [found for text in shown.yaml for found in yaml.safe_load_all(text)]
    return [found for found in documents if found and found.get("apiVersion") in OURS and "kind" in found]


MANIFESTS = [each for each in CHECKED if manifests(each)]


@pytest.mark.parametrize("shown", MANIFESTS, ids=map(str, MANIFESTS))
def test_a_manifest_is_applied_strictly(
    control_plane: Client, definition: None, control_plane_namespace: str, shown: Block
) -> None:
    """As kubectl does with `--validate=strict`, in a namespace that is as restricted as the strictest."""
    here, documents = f"--namespace={control_plane_namespace}", manifests(shown)
    restricted = ("label", "namespace", control_plane_namespace, "pod-security.kubernetes.io/enforce=restricted")
    control_plane.kubectl(*restricted)
    applied = ("apply", here, "--validate=strict", "--dry-run=server", "--filename=-")
    out = control_plane.kubectl(*applied, stdin=yaml.safe_dump_all(documents))
    assert out.count("created (server dry run)") == len(documents)


def test_a_line_of_kubectl_is_one_that_it_takes(control_plane: Client, tmp_path: Path) -> None:
    """Its own parser reads each of all pages: the verb and every flag."""
    shown = [each for each in CHECKED if "kubectl " in each.commands]
    calls = {
        (call.arguments, each.page)
        for number, each in enumerate(shown)
        for call in typed(each.commands, tmp_path / str(number)).calls
        if call.program == "kubectl" and call.arguments[:1] != ("lora",)
    }
    assert len(calls) > 50
    with ThreadPoolExecutor(2) as pool:
        faults = pool.map(lambda call: parsed(control_plane, *call), sorted(calls))
    assert [fault for fault in faults if fault] == []


def parsed(cluster: Client, arguments: tuple[str, ...], page: str) -> str:
    """What kubectl has against a command line; it executes none that asks for help."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    try:
        told = cluster.kubectl(*arguments[:at], "--help", *arguments[at:])
    except CommandError as error:
        return f"{page}: {error}"
    known = f"kubectl {verb_of(arguments)}" in told
    return "" if known else f"{page}: {' '.join(arguments)}: kubectl has no such verb"


def verb_of(arguments: tuple[str, ...]) -> str:
    """The first argument that is neither a flag nor the value of one; with the next where that is a verb, too."""
    pairs = zip(("", *arguments), arguments, (*arguments[1:], "-"), strict=True)
    verb, then = next((it, then) for last, it, then in pairs if it[0] != "-" and last not in _WITH_VALUE)
    return f"{verb} {then}" if verb in _OF_TWO and then[0] != "-" else verb


TABLES = [each for each in CHECKED if each.output.startswith("NAME ")]


@pytest.mark.parametrize("shown", TABLES, ids=map(str, TABLES))
def test_a_table_of_runs_is_what_kubectl_prints(stage: Stage, shown: Block) -> None:
    """Of runs with the same values, but for their age."""
    header, *rows = shown.output.splitlines()
    starts = [match.start() for match in re.finditer(r"\S+", header)]
    for row in rows:
        cells = [row[at:end].strip() for at, end in zip(starts, [*starts[1:], None], strict=True)]
        name, state, model, rank, quantization, steps, loss, eta, _age = cells
        stage.apply(name, model={"uri": model}, lora={"rank": int(rank)})
        progress = {"steps": steps, "loss": loss, "eta": eta}
        now = "2026-01-01T00:00:00Z"
        reason = {"type": "Complete", "status": "Unknown", "reason": state, "message": "", "lastTransitionTime": now}
        status = {"conditions": [reason], "resolved": {"quantization": quantization}}
        written = {key: value for key, value in progress.items() if value}
        stage.api.patch(
            stage.path("lorafinetunes", name, "status"), {"status": status | ({"progress": written} if written else {})}
        )
    printed = stage.cluster.kubectl("get", "lft", f"--namespace={stage.namespace}").splitlines()
    assert printed[0] == header
    assert [line[: starts[-1]] for line in printed[1:]] == [row[: starts[-1]] for row in rows]
