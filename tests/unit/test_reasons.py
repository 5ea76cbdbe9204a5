"""The vocabulary of reasons and the page that explains it."""

import ast
import re
from pathlib import Path

from lora_operator.views.conditions import Type
from lora_trainer.contract.exit_codes import FINAL, ExitCode
from lora_trainer.contract.reasons import Reason

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs"
ROW = re.compile(r"^\| `([A-Za-z]+)` \| .+ \| (.+) \| (.+) \|$", re.MULTILINE)
CODE_ROW = re.compile(r"^\| ([0-9]+) \| (.+) \| (yes|no) \|$", re.MULTILINE)


def section(page: str, title: str) -> str:
    """The text of a section of a page."""
    text = (PAGES / page).read_text()
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_every_reason_is_explained_once_in_the_order_of_the_vocabulary() -> None:
    """What it means and what to do, for each."""
    rows = ROW.findall(section("states.md", "Reasons"))
    assert [name for name, _, _ in rows] == [reason.value for reason in Reason]
    for name, meaning, remedy in rows:
        assert len(meaning) > 10, name
        assert len(remedy) > 5, name


def test_every_condition_is_explained() -> None:
    """In the order in which the status lists them."""
    rows = ROW.findall(section("states.md", "Conditions"))
    assert list(dict.fromkeys(name for name, _, _ in rows)) == [kind.value for kind in Type]


def test_every_exit_code_is_explained_with_whether_it_is_retried() -> None:
    """The table is the contract's."""
    rows = {int(code): retried for code, _, retried in CODE_ROW.findall(section("trainer.md", "How a run ends"))}
    retried = {int(code): "no" if code in FINAL or code == ExitCode.OK else "yes" for code in ExitCode}
    assert rows == retried


def test_reasons_are_words_in_camel_case_and_unique() -> None:
    """As Kubernetes asks of a reason."""
    assert len({reason.value for reason in Reason}) == len(list(Reason))
    for reason in Reason:
        assert re.fullmatch(r"[A-Z][A-Za-z]{1,62}", reason.value)


def test_every_reason_is_used_by_somebody() -> None:
    """A word that nothing ever says is no part of a vocabulary."""
    used: set[str] = set()
    for folder in (ROOT / "operator", ROOT / "trainer_image"):
        for path in folder.rglob("*.py"):
            if path.name not in {"reasons.py", "states.py", "vocabulary.py"}:
                used |= {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    phases = {"STARTING", "PREPARING", "LOADING_MODEL", "TRAINING", "EVALUATING", "PUBLISHING"}
    assert {reason.name for reason in Reason} - used - phases == set()
