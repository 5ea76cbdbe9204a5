"""What README.md and docs/ show, on a real API server: manifests, lines of kubectl, what is printed of a run."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.component.client_account import install_roles, person
from tests.component.conftest import serve_definition, until_served
from tests.component.documents import Object, finetune
from tests.component.stage import REPOSITORY, Stage
from tests.pages.blocks import BLOCKS, Block, block
from tests.pages.executed import Substitution, execute, substituted
from tests.pages.typed import typed

from localcluster.client import Client, CommandError
from lora_client.__main__ import main
from lora_trainer.spec.manifest import API_VERSION, KIND

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


def test_a_team_s_namespace_is_made_by_what_the_page_types(
    control_plane: Client, definition: None, tmp_path: Path
) -> None:
    """Executed as it stands, with the claims of the installation's page."""
    (tmp_path / "claims.yaml").write_text(block("docs/install.md", "metadata: {name: adapters}").yaml[0])
    try:
        execute(
            block("docs/tenancy.md", "kubectl create namespace team-a").commands, control_plane.environment, tmp_path
        )
        names = ("rolebinding/ml-engineers", "secret/hf-token", "quota/gpus", "pvc/adapters", "pvc/datasets")
        found = control_plane.get(*names, "--namespace=team-a")["items"]
        assert len(found) == len(names)
    finally:
        control_plane.kubectl("delete", "namespace", "team-a", "--wait=false")


def test_an_administrator_installs_upgrades_and_removes_by_what_the_page_types(
    control_plane: Client, definition: None, control_plane_namespace: str, tmp_path: Path
) -> None:
    """`helm uninstall` keeps the definition and every run; what removes them is the last of the page's commands."""
    (tmp_path / "helm").symlink_to(REPOSITORY / "helm")
    ready = Substitution(shown="kubectl -n lora-system rollout", typed=": kubectl rollout", why="there is no node")

    def types(begin: str) -> str:
        commands = substituted(block("docs/install.md", begin).commands, [ready])
        return execute(commands, control_plane.environment, tmp_path)

    run = ("lft", "kept", f"--namespace={control_plane_namespace}")
    control_plane.kubectl("delete", "crd", DEFINITION)
    try:
        assert "STATUS: deployed" in types("helm install")
        until_served(control_plane)
        control_plane.apply(finetune("kept"), namespace=control_plane_namespace)
        before = control_plane.get(*run)
        assert "STATUS: deployed" in types("helm upgrade lora-finetune-operator")
        assert "kept due to the resource policy" in types("helm uninstall")
        assert control_plane.get(*run) == before
        types("kubectl delete lorafinetunes")
        assert DEFINITION not in [each["metadata"]["name"] for each in control_plane.get("crds")["items"]]
    finally:
        here = "--namespace=lora-system"
        control_plane.helm("uninstall", "lora-finetune-operator", here, "--ignore-not-found")
        control_plane.kubectl("delete", "namespace", "lora-system", "--wait=false", "--ignore-not-found")
        serve_definition(control_plane)


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


@pytest.fixture
def typing(stage: Stage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder in which a person with the role `edit` types."""
    install_roles(stage.cluster)
    monkeypatch.setenv("KUBECONFIG", str(person(stage).kubeconfig))
    (tmp_path / "typing").mkdir()
    monkeypatch.chdir(tmp_path / "typing")
    return tmp_path


def test_what_init_and_convert_write_is_what_the_cluster_takes(
    stage: Stage, typing: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The blocks of the client's page, executed: the first without questions, the second of somebody's Axolotl."""
    axolotl = REPOSITORY / "tests/unit/client/configurations/axolotl-llama3-lora-8b.yaml"
    Path("axolotl.yaml").write_text(axolotl.read_text())
    written = {}
    for begin in ("lora init", "lora convert"):
        calls = typed(block("docs/client.md", begin).commands, typing / begin).calls
        Path("support-tone.yaml").unlink(missing_ok=True)
        for call in calls:
            assert main(call.arguments) == 0, capsys.readouterr().err
        assert main(["validate", "-f", "support-tone.yaml"]) == 0, capsys.readouterr().err
        written[begin] = yaml.safe_load(Path("support-tone.yaml").read_text())
    assert {run["metadata"]["name"] for run in written.values()} == {"support-tone"}
    by_hand = yaml.safe_load(block("docs/quickstart.md", '  model: {uri: "hf://meta-llama').text)
    assert written["lora init"]["spec"]["output"] == by_hand["spec"]["output"]
    assert written["lora init"]["spec"]["model"] == by_hand["spec"]["model"]


def test_the_client_says_of_the_page_s_mistakes_what_it_shows(
    stage: Stage, typing: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The two of the page, in a file that is good otherwise."""
    spec: dict[str, Any] = yaml.safe_load(block("docs/quickstart.md", '  model: {uri: "hf://meta-llama').text)["spec"]
    spec |= {"lora": {"layers": "all-linear"}, "training": {"learningRate": 0.0001}}
    run = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "support-tone"}, "spec": spec}
    Path("support-tone.yaml").write_text(yaml.safe_dump(run))
    shown = block("docs/client.md", "$ lora validate")
    (call,) = typed(shown.commands, typing / "typed").calls
    assert main(call.arguments) == 1
    assert capsys.readouterr().err == shown.output
