"""What docs/troubleshooting.md says that `kubectl apply` answers to mistakes, on a real API server."""

import json
import re
from typing import Any

from tests.component.stage import REPOSITORY, Stage

from localcluster.client import CommandError
from lora_trainer.spec.manifest import API_VERSION, KIND

PAGE = (REPOSITORY / "docs/troubleshooting.md").read_text(encoding="utf-8")
RUN: dict[str, Any] = {
    "model": {"uri": "hf://acme/base"},
    "dataset": {"uri": "hf://acme/support-chats"},
    "lora": {"rank": 16},
    "output": {"uri": "pvc://adapters/support-tone"},
}
MISTAKES: list[dict[str, Any]] = [
    {"lora": {"rank": 32}},
    {"model": {"uri": "hf://acme/base", "secretRef": {"name": "Token"}}},
    {"training": {"learningRate": 0.0002}},
    {"training": {"optimizer": "adamw_8bit"}},
    {"training": {"learninRate": "0.0002"}},
]


def test_the_page_quotes_the_answers_to_mistakes(stage: Stage) -> None:
    """The first to a change of a run that exists, the others to new runs; each in a line of its own."""
    (block,) = re.findall(r"^## `kubectl apply` is refused\n.*?^```text\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    apply(stage, "support-tone", {})
    names = ["support-tone", *["another"] * (len(MISTAKES) - 1)]
    answers = [refusal(stage, name, mistake) for name, mistake in zip(names, MISTAKES, strict=True)]
    lines = block.splitlines()
    assert len(lines) == len(MISTAKES)
    assert [line for line, answer in zip(lines, answers, strict=True) if line not in answer] == []


def apply(stage: Stage, name: str, changes: dict[str, Any]) -> None:
    """Run kubectl. Raises CommandError."""
    document = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "spec": RUN | changes}
    stage.cluster.kubectl("apply", f"--namespace={stage.namespace}", "--filename=-", stdin=json.dumps(document))


def refusal(stage: Stage, name: str, changes: dict[str, Any]) -> str:
    """What kubectl writes."""
    try:
        apply(stage, name, changes)
    except CommandError as error:
        return str(error)
    raise AssertionError(f"{changes} was accepted")
