"""The commands, manifests and queries of README.md and docs/ are ones that their programs take.

One that cannot be is left out by a comment before its block: `<!-- Not run: it needs a GPU. -->`.
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
from tests.pages.blocks import BLOCKS, REPOSITORY, Block
from tests.pages.checks import fault, missing_files
from tests.pages.typed import typed

from docgen.schema import load
from lora_client import interface
from lora_client.runs import ClusterRun
from lora_client.views.answers import Answer
from lora_trainer.spec.manifest import KIND, RunOptions, train_config

CHART = REPOSITORY / "helm/lora-finetune-operator"
FIELDS = {field.name for field in load(REPOSITORY / "crds/lorafinetunes.yaml").field("spec").children}
CHECKED = [each for each in BLOCKS if not each.reason]


def named(blocks: list[Block]) -> dict[str, Any]:
    """For parametrize: a case for each."""
    return {"argvalues": blocks, "ids": map(str, blocks)}


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
def test_yaml_is_a_manifest_fields_of_one_or_values_of_the_chart(shown: Block) -> None:
    """Runs by the trainer's rules, values by the chart's schema; tests/component/test_pages.py applies them."""
    for text in shown.yaml:
        documents = [document for document in yaml.safe_load_all(text) if document]
        assert documents
        for document in documents:
            if document.get("kind") == KIND:
                assert train_config(document, RunOptions(uid="u", strict=True))
            elif shown.language == "yaml" and document.keys() <= FIELDS:
                whole = yaml.safe_load((REPOSITORY / "examples/quickstart.yaml").read_text())
                assert train_config(
                    {**whole, "spec": merged(whole["spec"], document)}, RunOptions(uid="u", strict=True)
                )
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
