"""The vocabulary of reasons."""

import ast
import re
from pathlib import Path

from lora_trainer.spec.reasons import Reason

ROOT = Path(__file__).parents[2]


def test_reasons_are_words_in_camel_case() -> None:
    """As Kubernetes asks of a reason."""
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
