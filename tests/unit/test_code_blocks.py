"""Every code block of README.md and docs/ is executed, checked or compared by a test, or says why it is not.

A block that none can run has the reason in a comment before it: `<!-- Not run: it needs a GPU. -->`, or for output that
none can compare `<!-- Not compared: ... -->`. `<!-- Not executed: ... -->` is for commands that are parsed all
the same.
"""

import json
import re
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import jsonschema
import pytest
import yaml
from tests.chart import promql
from tests.chart.matrix import merged
from tests.pages.blocks import BLOCKS, REPOSITORY, Block, blocks_of
from tests.pages.checks import fault, missing_files
from tests.pages.typed import PROGRAMS, Call, typed

from lora_client import interface
from lora_client.runs import ClusterRun
from lora_client.views.answers import Answer
from lora_trainer.contract.manifest import KIND, RunOptions, train_config

CHART = REPOSITORY / "helm/lora-finetune-operator"
COMPONENT = "tests/component/test_pages.py"
# By the begin of a line of each block.
COMPARED = {
    "README.md": {"NAME ": f"{COMPONENT}::test_a_table_of_runs_is_what_kubectl_prints"},
    "docs/client.md": {"$ lora validate": f"{COMPONENT}::test_the_client_says_of_the_page_s_mistakes_what_it_shows"},
    "docs/fit.md": {"$ lora-trainer plan": "tests/unit/test_plan.py::test_the_page_shows_what_the_command_prints"},
    "docs/install.md": {
        "spec.model.uri is": "tests/chart/test_switches_on_api_server.py::test_the_page_quotes_the_rule_of_its_flags"
    },
    "docs/kueue.md": {"NAME ": f"{COMPONENT}::test_a_table_of_runs_is_what_kubectl_prints"},
    "docs/monitoring.md": {"Monitoring:": "tests/unit/test_demo.py::test_a_watched_demo_ends_with_what_the_page_shows"},
    "docs/operations.md": {
        "LoRAFineTune team-a/": "tests/unit/test_operations_page.py::test_the_explanation_is_what_the_command_prints",
        "2026-03-01T": "tests/unit/test_operations_page.py::test_the_lines_of_the_log_are_what_the_operator_writes",
    },
    "docs/watch.md": {"NAME ": f"{COMPONENT}::test_a_table_of_runs_is_what_kubectl_prints"},
    "docs/when-it-fails.md": {
        "The LoRAFineTune ": "tests/component/test_when_it_fails.py::test_the_page_quotes_the_answers_to_mistakes",
        "    Message: ": "tests/unit/test_when_it_fails.py::test_each_quoted_condition_is_what_the_program_says",
    },
}
NEWCOMER = "tests/e2e/test_newcomer.py::test_a_newcomer_gets_an_adapter_by_typing_the_readme"
AT_A_CLUSTER = "tests/e2e/test_page_commands.py"
RUNBOOK = f"{AT_A_CLUSTER}::test_a_runbook_s_commands_work_as_pasted"
ADMINISTRATOR = f"{COMPONENT}::test_an_administrator_installs_upgrades_and_removes_by_what_the_page_types"
QUICKSTART = f"{AT_A_CLUSTER}::test_the_quickstart_on_gpus_is_typed_as_it_stands"
SUSPENDED = f"{AT_A_CLUSTER}::test_a_run_is_suspended_and_resumed_by_either_program"
TEAM = f"{AT_A_CLUSTER}::test_a_team_s_namespace_gets_claims_and_a_file_on_one"
FLAGS = "tests/chart/test_page_commands.py::test_a_line_of_helm_is_one_that_helm_and_the_chart_take"
MONITORING = "tests/e2e/test_monitoring.py"
WITHOUT = "tests/trainer/test_page_commands.py::test_every_command_of_the_page_does_what_it_says"
# By the begin of a line of each block; of flags that Helm is shown alone, the rendering.
EXECUTED = {
    "README.md": dict.fromkeys(("docker build", "kubectl create secret", "pip install", "make venv"), NEWCOMER),
    "docs/client.md": {
        "pip install": "tests/unit/client/test_installed.py::test_the_page_s_commands_install_client_and_plugin",
        "lora init": f"{COMPONENT}::test_what_init_and_convert_write_is_what_the_cluster_takes",
        "lora clone": QUICKSTART,
        "lora convert": f"{COMPONENT}::test_what_init_and_convert_write_is_what_the_cluster_takes",
    },
    "docs/gitops.md": {
        "kubectl patch": "tests/component/test_gitops.py::test_the_check_for_argo_cd_goes_in_beside_what_is_there"
    },
    "docs/gpu.md": {
        "kubectl create": "tests/e2e/test_gpu_acceptance.py::"
        "test_the_image_builds_an_extension_through_triton_as_a_pods_user"
    },
    "docs/install.md": {
        "helm install": ADMINISTRATOR,
        "helm test": f"{AT_A_CLUSTER}::test_an_administrator_looks_after_the_chart",
        "--set": FLAGS,
        "metadata: {name: datasets}": TEAM,
        "metadata: {name: lora-cache}": TEAM,
        "metadata: {name: copy}": TEAM,
        "kubectl -n team-a create secret": TEAM,
        "helm upgrade ... --set-json": FLAGS,
        "helm upgrade lora": ADMINISTRATOR,
        "helm uninstall": ADMINISTRATOR,
        "kubectl delete lorafinetunes": ADMINISTRATOR,
    },
    "docs/kueue.md": {"$ hack/cluster addon kueue": "tests/cluster/test_kueue.py::kueue"},
    "docs/local-cluster.md": {
        "$ hack/cluster build": "tests/cluster/test_local_cluster_life.py::running",
        '$ eval "$(hack/cluster up --profile': "tests/cluster/test_local_cluster_life.py::"
        "test_control_planes_stand_side_by_side",
        "$ kubectl --namespace monitoring logs": f"{MONITORING}::test_what_goes_wrong_with_a_run_wakes_somebody_once",
    },
    "docs/monitoring.md": {
        "stack=": FLAGS,
        "hack/dashboard-picture": f"{MONITORING}::test_a_picture_of_a_run_is_drawn_as_the_page_has_it",
    },
    "docs/operations.md": {
        "log() {": f"{AT_A_CLUSTER}::test_questions_to_the_operator_s_log_are_answered",
        "$ kubectl exec": f"{AT_A_CLUSTER}::test_the_operator_s_pod_explains_a_run_as_the_page_has_it",
    },
    "docs/quickstart.md": dict.fromkeys(
        ("kubectl create secret", "kubectl apply", "kubectl wait lft/support-tone", "lora ask"), QUICKSTART
    ),
    "docs/run-without-a-cluster.md": dict.fromkeys(("$ pip install", "$ lora-trainer ask"), WITHOUT),
    "docs/tenancy.md": {
        "kubectl create namespace": f"{COMPONENT}::test_a_team_s_namespace_is_made_by_what_the_page_types"
    },
    "docs/upgrade.md": {"helm test": f"{AT_A_CLUSTER}::test_an_administrator_looks_after_the_chart"},
    "docs/watch.md": {"lora watch": QUICKSTART, "lora suspend": SUSPENDED, "kubectl patch lft": SUSPENDED},
    **{each.page: {"": RUNBOOK} for each in BLOCKS if each.page.startswith("docs/runbooks/")},
}
LIKEWISE = {FLAGS, RUNBOOK, EXECUTED["docs/local-cluster.md"]["$ kubectl --namespace monitoring logs"]}
"""Tests that find their blocks by something else than their page, or type the same command in Python."""
STRICT = {  # manifests of kinds that others define
    "kueue.x-k8s.io": "tests/cluster/test_kueue.py::test_the_page_s_objects_are_what_kueue_takes",
    "kustomize.toolkit.fluxcd.io": "tests/component/test_gitops.py::test_flux_is_told_how_each_state_is",
}
CHECKED = [each for each in BLOCKS if not each.reason]


def named(blocks: list[Block]) -> dict[str, Any]:
    """For parametrize: a case for each."""
    return {"argvalues": blocks, "ids": map(str, blocks)}


@pytest.mark.parametrize("shown", **named(CHECKED))
def test_a_block_has_a_test_or_a_reason(shown: Block) -> None:
    """By its language; output by the table above."""
    assert shown.language in ("yaml", "sh", "console", "python", "promql", "text", ""), shown.language
    if shown.output:
        begins = COMPARED.get(shown.page, {})
        tests = [test for begin, test in begins.items() if f"\n{begin}" in f"\n{shown.text}"]
        assert tests, "nothing compares this output: do it and name the test above, or say in a comment why not"
        assert all(exists(test) for test in tests), tests


@pytest.mark.parametrize("shown", **named([each for each in CHECKED if each.commands and not each.output]))
def test_commands_are_executed_or_say_why_not(shown: Block) -> None:
    """By the table above; where output is shown, what compares it executes them."""
    tests = [test for begin, test in EXECUTED.get(shown.page, {}).items() if f"\n{begin}" in f"\n{shown.text}"]
    assert tests or shown.unexecuted, (
        "nothing executes this: do it and name the test above, or say in a comment why not"
    )
    assert not (tests and shown.unexecuted), tests
    assert all(exists(test) for test in tests), tests


@pytest.mark.parametrize(("page", "test"), [(page, test) for page, of in EXECUTED.items() for test in of.values()])
def test_what_is_said_to_execute_a_page_reads_it(page: str, test: str) -> None:
    """Another page's test that types the same is a reason in a comment."""
    assert test in LIKEWISE or Path(page).name in (REPOSITORY / test.partition("::")[0]).read_text(encoding="utf-8")


def test_the_tables_name_no_block_that_there_is_not() -> None:
    """Of what is executed."""
    texts = {page: [f"\n{each.text}" for each in CHECKED if each.page == page] for page in EXECUTED}
    left = [
        (page, begin)
        for page, of in EXECUTED.items()
        for begin in of
        if not any(f"\n{begin}" in t for t in texts[page])
    ]
    assert left == []


@pytest.mark.parametrize("shown", **named([each for each in CHECKED if each.commands]))
def test_what_is_typed_is_what_its_programs_take(shown: Block, tmp_path: Path) -> None:
    """As bash reads it: no unknown program, verb, flag, target, extra or file."""
    done = typed(shown.commands, tmp_path)
    assert done.complaints == "", f"no test runs this; say why in a comment before the block, or mend it: {shown}"
    assert done.calls
    faults = [wrong for call in done.calls if (wrong := fault(call))]
    assert faults + [wrong for call in done.calls for wrong in missing_files(call)] == []


_NOT_TYPED = re.compile(r"<<'YAML'\n.*?^YAML$|'[^']*'|\"(?:\\\\.|[^\"\\\\])*\"", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"(?:^|\s)#.*", re.MULTILINE)
_ENDLESS = re.compile(r"\s(?:-w|--watch)(?:\s|$)|\bport-forward\b|-m hub\.server\b")


@pytest.mark.parametrize("shown", **named([each for each in BLOCKS if each.language == "sh"]))
def test_a_block_is_one_that_an_interactive_zsh_takes_as_pasted(shown: Block) -> None:
    """Which has no comments, so that an apostrophe in one opens a string; and what never ends takes the lines below."""
    typed_text = _NOT_TYPED.sub("quoted", shown.text)
    assert _COMMENT.findall(typed_text) == [], "write the comment above the block"
    *before, _ = typed_text.splitlines()
    assert [line for line in before if _ENDLESS.search(line)] == [], "it ends by Ctrl-C alone: write it last"


@pytest.mark.parametrize("shown", **named([each for each in CHECKED if each.yaml]))
def test_yaml_is_a_manifest_or_values_of_the_chart(shown: Block) -> None:
    """Runs by the trainer's rules, values by the chart's schema; tests/component/test_pages.py applies them."""
    for text in shown.yaml:
        documents = [document for document in yaml.safe_load_all(text) if document]
        assert documents
        for document in documents:
            if document.get("kind") == KIND:
                assert train_config(document, RunOptions(uid="u", strict=True))
            elif "kind" not in document and shown.language == "yaml":
                schema = json.loads((CHART / "values.schema.json").read_text())
                values = yaml.safe_load((CHART / "values.yaml").read_text())
                jsonschema.Draft7Validator(schema).validate(merged(values, document))


@pytest.mark.parametrize("shown", **named([each for each in CHECKED if each.language == "promql"]))
def test_a_query_asks_for_series_and_labels_that_there_are(shown: Block) -> None:
    """Ours, and those of others that the alerts rely on, too."""
    assert list(promql.faults(shown.text, promql.known_series())) == []


def test_the_python_of_the_client_s_page_uses_what_the_client_has(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Executed in their order, with a cluster that checks the run and has it done at once."""
    blocks = [each for each in CHECKED if each.language == "python"]
    done = create_autospec(ClusterRun, instance=True)
    done.wait.return_value = done.clone.return_value = done
    done.pull.return_value = "a folder"
    done.compare.return_value = {"difference": -0.25}
    done.ask.return_value = Answer(question="", base="", adapter="Aye.")

    class Place:
        def __init__(self, _context: str | None, namespace: str | None) -> None:
            assert namespace == "team-a"

        def start(self, manifest: dict[str, Any]) -> ClusterRun:
            assert train_config(manifest, RunOptions(uid="u", strict=True))
            return done  # type: ignore[no-any-return] # what stands for one

    monkeypatch.setattr(interface, "ClusterRuns", Place)
    known: dict[str, Any] = {}
    for shown in blocks:
        exec(compile(shown.text, str(shown), "exec"), known)  # noqa: S102 - a page of this repository
    assert known["folder"] == "a folder"
    assert capsys.readouterr().out == "-0.25 Aye.\n"


def test_manifests_of_other_projects_have_a_test_that_knows_these() -> None:
    """By their API group; those of Kubernetes itself are applied."""
    documents = [found for each in CHECKED for text in each.yaml for found in yaml.safe_load_all(text)]
    groups = {found["apiVersion"].partition("/")[0] for found in documents if found and "kind" in found}
    assert groups - {"v1", "lora-operator.io"} == set(STRICT)
    assert all(exists(test) for test in STRICT.values())


def exists(test: str) -> bool:
    """Whether there is a test of that name in that file."""
    file, _, name = test.partition("::")
    return f"\ndef {name}(" in (REPOSITORY / file).read_text(encoding="utf-8")


# -- of the runner itself

PAGE = """\
<!-- Not run: it needs
a GPU. -->

```sh
nvidia-smi
```

1. A list.

    ```console
    $ lora list
    NAME
    ```
"""


def test_blocks_are_found_with_their_reasons() -> None:
    """Also in a list, and each reason for the block behind it alone."""
    first, second = blocks_of("x.md", PAGE)
    assert (first.line, first.reason, first.commands) == (4, "it needs a GPU.", "nvidia-smi\n")
    assert (second.line, second.reason, second.commands, second.output) == (10, "", "lora list\n", "NAME\n")
    with pytest.raises(ValueError, match="fences"):
        blocks_of("x.md", "```sh\nmake demo\n")


def test_the_shell_reads_what_is_typed(tmp_path: Path) -> None:
    """Loops, quotes, pipes and here-documents; what there is no check for is named."""
    text = (
        "for n in a b; do docker push \"x/$n:1\"; done  # both\nkubectl apply -f - <<'YAML' | tail -n 1\na: 1\nYAML\n"
    )
    assert [(call.program, call.arguments, call.stdin) for call in typed(text, tmp_path / "good").calls] == [
        ("docker", ("push", "x/a:1"), ""),
        ("docker", ("push", "x/b:1"), ""),
        ("kubectl", ("apply", "-f", "-"), "a: 1"),
    ]
    assert "command not found" in typed("vllm serve x\n", tmp_path / "bad").complaints


@pytest.mark.parametrize(
    ("typed_line", "wrong"),
    [
        ("lora run -f x.yaml --wacth", "--wacth"),
        ("lora tell support-tone", "tell"),
        ("lora-trainer plan -f x.yaml --gpus T4", "--gpus T4"),
        ("lora-operator explain", "NAMESPACE/NAME"),
        ("make demos", "no target demos"),
        ("hack/cluster addon istio", "istio"),
        ("hack/dashboard-picture run --hours 3", "names no --hours"),
        ("python benchmarks/gpu.py", "no file"),
        ("python benchmarks/gpu_acceptance.py --part device", "names no --part"),
        ("docker build -t x -f trainer_image/Dockerfile --target small .", "AS small"),
        ("docker build -t x --build-arg INDEX=1 .", "ARG INDEX="),
        ("pip install .[clients]", "no `pip install`"),
        ("python3 -m virtualenv .venv", "not `python3 -m venv FOLDER`"),
        ("jq -r .nmae", "no field nmae"),
        ("kubectl get lft -o jsonpath={.status.artefact.uri}", "no status.artefact.uri"),
        ('kubectl patch lft x -p {"spec":{"suspended":true}}', "no spec.suspended"),
    ],
)
def test_a_wrong_line_is_found(typed_line: str, wrong: str) -> None:
    """Of each program that blocks may call but helm."""
    program, *arguments = typed_line.split()
    assert program in PROGRAMS
    assert wrong in str(fault(Call(program=program, arguments=tuple(arguments))))


def test_a_file_that_nobody_has_is_named() -> None:
    """Neither the repository nor the reader."""
    good = [Call(program="kubectl", arguments=("apply", "-f", f)) for f in ("examples/cpu.yaml", "-", "claims.yaml")]
    assert [wrong for call in good for wrong in missing_files(call)] == []
    assert list(missing_files(Call(program="kubectl", arguments=("apply", "-f", "examples/no.yaml"))))


def test_an_example_on_a_page_is_the_file_that_its_first_line_names() -> None:
    """Or is the page's own."""
    named_files = [(each, path) for each in BLOCKS for path in re.findall(r"\A# (examples/\S+)\n", each.text)]
    assert [str(each) for each, path in named_files if _documents(each.text) != _documents(_read(path))] == []
    assert named_files


def _read(path: str) -> str:
    return (REPOSITORY / path).read_text(encoding="utf-8")


def _documents(text: str) -> list[Any]:
    return list(yaml.safe_load_all(text))
